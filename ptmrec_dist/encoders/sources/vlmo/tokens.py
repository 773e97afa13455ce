"""Tokenizers of VLMo (BERT's WordPiece) and BEiT-3 (SentencePiece), from files that hold no code.

Legend: B batch, C context length, V vocabulary.
"""

import string
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, Regex, Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import Normalizer, Precompiled, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from ptmrec_dist.errors import UserError

TOKENIZER_FILE, WORDPIECE_FILE = "tokenizer.json", "vocab.txt"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Tokens:
    """Texts to token ids, cut and padded to one length."""

    tokenizer: Tokenizer
    """Normalisation, pieces, and special tokens at both ends."""
    length: int
    """Context length C."""
    vocabulary: int
    """Size V of the model's vocabulary."""
    pad_id: int
    """Id of padding."""

    def __post_init__(self) -> None:
        """Set cutting and padding.

        Raises:
            UserError: The tokenizer has ids that the model has not.
        """
        if self.tokenizer.get_vocab_size() > self.vocabulary:
            raise UserError(
                f"encoder.model: its tokenizer has {self.tokenizer.get_vocab_size()} tokens, but its weights have "
                f"{self.vocabulary}; expected the tokenizer that belongs to the weights"
            )
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding(length=self.length, pad_id=self.pad_id)

    def __call__(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids.

        Args:
            texts: B texts.

        Returns:
            int64 [B, C], and how many texts are longer than C and lose their end.
        """
        found = self.tokenizer.encode_batch(texts)
        ids_BC = torch.tensor([encoded.ids for encoded in found], dtype=torch.int64).view(-1, self.length)
        return ids_BC, sum(bool(encoded.overflowing) for encoded in found)

    @property
    def mask_id(self) -> int | None:
        """Id of the token that hides another; None where there is none."""
        found = (self.tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>"))
        return next((number for number in found if number is not None), None)

    def special(self) -> Tensor:
        """Tell tokens that no text has: padding, ends, mask.

        Returns:
            Boolean [V].
        """
        special_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        special_V[[self.pad_id, *(int(number) for number in self.tokenizer.get_added_tokens_decoder())]] = True
        return special_V

    def continues(self) -> Tensor:
        """Tell pieces that continue a word.

        Returns:
            Boolean [V].
        """
        continues_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        for piece, number in self.tokenizer.get_vocab().items():
            continues_V[number] = piece.startswith("##")
        return continues_V


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder.

    Args:
        folder: Folder with `tokenizer.json`, BERT's `vocab.txt`, or a SentencePiece model `*.spm`.

    Returns:
        The tokenizer.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    pieces = sorted(folder.glob("*.spm"))
    try:
        if (folder / TOKENIZER_FILE).is_file():
            return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        if (folder / WORDPIECE_FILE).is_file():
            return _wordpiece({word: number for number, word in enumerate(_lines(folder / WORDPIECE_FILE))})
        if pieces:
            return _sentencepiece(pieces[0])
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"encoder.model: cannot read the tokenizer of {folder} ({error})") from error
    raise UserError(
        f"encoder.model: {folder} has no tokenizer; expected {TOKENIZER_FILE}, {WORDPIECE_FILE} (VLMo: that of "
        "bert-base-uncased) or *.spm (BEiT-3: beit3.spm)"
    )


def character_tokenizer() -> Tokenizer:
    """Make a tokenizer of single characters, which needs no file: letters, digits and punctuation of ASCII.

    Returns:
        The tokenizer.
    """
    letters = string.ascii_lowercase + string.digits
    pieces = [*_SPECIAL, *letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    return _wordpiece({piece: number for number, piece in enumerate(pieces)})


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    made = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    made.add_special_tokens(list(_SPECIAL))
    return Tokenizer.from_str(made.to_str())


def _sentencepiece(path: Path) -> Tokenizer:
    """Read a SentencePiece model as XLM-R does: special tokens in front replace its own three, the mask stands at the end."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    first, last = ["<s>", "<pad>", "</s>", "<unk>"], "<mask>"
    scores = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    tokenizer = Tokenizer(Unigram([*((name, 0.0) for name in first), *scores, (last, 0.0)], unk_id=3))
    clean: list[Normalizer] = [Replace(Regex(" {2,}"), " "), Strip()]
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        clean = [Precompiled(charsmap), *clean]
    tokenizer.normalizer, tokenizer.pre_tokenizer = Sequence(clean), Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens([*first, last])
    return tokenizer


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]
