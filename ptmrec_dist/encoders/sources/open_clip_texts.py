"""Token ids of texts, as open_clip's tokenizers give them, and which texts are cut off.

Legend: B batch, C context length.
"""

from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

_CLIPS_SPECIAL = 3
"""Tokens that the mode `clips` adds to those of a text."""
_MOST_WORDS = 2**17


class OpenClipTexts:
    """A tokenizer of open_clip.

    The one in Python encodes every text to its end. Here a text is encoded as far as the context reaches, and a word once: the
    same ids in a third of the time, for the plot of a film.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._words = _WordIds(tokenizer)

    def __call__(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids.

        Args:
            texts: B texts.

        Returns:
            Padded ids, int64 [B, C], and how many texts lose their end.
        """
        if isinstance(self.tokenizer, HFTokenizer):
            return self.tokenizer(texts), self._longer(texts)
        if type(self.tokenizer) is not SimpleTokenizer or self.tokenizer.reduction_fn is not None:
            lengths = (len(self.tokenizer.encode(text)) + 2 for text in texts)  # with those that mark start and end
            return self.tokenizer(texts), sum(length > self.tokenizer.context_length for length in lengths)
        rows = [self._ids(text) for text in texts]
        ids_BC = torch.zeros(len(texts), self.tokenizer.context_length, dtype=torch.int64)
        for row_C, (ids, _) in zip(ids_BC, rows, strict=True):
            row_C[: len(ids)] = torch.tensor(ids)
        return ids_BC, sum(cut for _, cut in rows)

    def _ids(self, text: str) -> tuple[list[int], bool]:
        tokenizer = self.tokenizer
        ids, room = [tokenizer.sot_token_id], tokenizer.context_length - 1
        for word in tokenizer.pat.finditer(tokenizer.clean_fn(text)):
            ids += self._words[word.group()]
            if len(ids) > room:
                break
        return [*ids[:room], tokenizer.eot_token_id], len(ids) > room

    def _longer(self, texts: list[str]) -> int:
        """Texts of more tokens than the context, by a tokenizer of transformers."""
        tokenizer = self.tokenizer
        clips = tokenizer.tokenizer_mode == "clips"
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        found = tokenizer.tokenizer(cleaned, truncation=False, padding=False, add_special_tokens=not clips).input_ids
        room = tokenizer.context_length - (_CLIPS_SPECIAL if clips else 0)
        return sum(len(ids) > room for ids in found)


class _WordIds(dict[str, list[int]]):
    """Token ids of the words that were met; emptied when they are many, since a server meets ever new ones."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        tokenizer = self._tokenizer
        if len(self) >= _MOST_WORDS:
            self.clear()
            specials = (tokenizer.decoder[number] for number in tokenizer.all_special_ids)
            tokenizer.cache = {name: name for name in specials}  # as at first; it grows likewise
        characters = "".join(tokenizer.byte_encoder[byte] for byte in word.encode())
        self[word] = [tokenizer.encoder[part] for part in tokenizer.bpe(characters).split(" ")]
        return self[word]
