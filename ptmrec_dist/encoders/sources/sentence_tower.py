"""A text encoder: a model of transformers, its tokenizer and what pools its states.

Legend: B batch, N tokens, D width.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import weights_digest
from ptmrec_dist.encoders.sources.layouts import hugging_face_blocks
from ptmrec_dist.encoders.sources.pooling import OPTION, WEIGHTS_FILE, Pooling, SentenceModules, read_settings
from ptmrec_dist.encoders.tower import TokenStates, output_width

PADDING = -1
"""Stands for padding among token ids: ids of padding tokens may also occur as tokens."""
INDEX_FILE = "model.safetensors.index.json"
"""Lists the files of weights that were divided."""
ENCODER_OF_TWO = ("t5", "mt5", "umt5")
"""Models of an encoder and a decoder, of which sentence encoders are the first."""
COPIED = ("*.json", "*.txt", "*.model")
"""Configuration and tokenizer, never code or pickles."""
_NOT_FEATURES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


class SentenceEncoder(nn.Module):
    """A transformer with its pooling.

    Args:
        transformer: A model that returns `last_hidden_state`.
        pooling: Pools it.
        behind: What follows, in order.
    """

    def __init__(self, transformer: nn.Module, pooling: Pooling, behind: dict[str, nn.Module]) -> None:
        super().__init__()
        self.transformer, self.pooling, self.behind = transformer, pooling, nn.ModuleDict(behind)

    def states(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Run the transformer, token ids [B, N] to states [B, N, D]."""
        states_BND: Tensor = self.transformer(input_ids=ids_BN, attention_mask=mask_BN.long()).last_hidden_state
        return states_BND

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Encode texts, token ids [B, N] with their mask to rows [B, D]."""
        rows_BD: Tensor = self.pooling(self.states(ids_BN, mask_BN), mask_BN)
        for module in self.behind.values():
            rows_BD = module(rows_BD)
        return rows_BD


class SentenceTower:
    """A frozen text encoder with its tokenizer.

    Args:
        model: The model, in eval mode.
        tokenizer: A fast tokenizer of transformers.
        max_length: Most tokens that it reads; None where nothing limits it.
        prefix: Put before every text.
        lower_case: Whether texts are put into lower case before they are tokenized.
        folder: Where it was loaded from.
        modules: What the folder says of itself.
    """

    def __init__(
        self,
        model: SentenceEncoder,
        tokenizer: Any,
        max_length: int | None,
        prefix: str,
        lower_case: bool,
        folder: Path,
        modules: SentenceModules,
    ) -> None:
        self.model, self.tokenizer, self.max_length, self.prefix = model, tokenizer, max_length, prefix
        self._lower_case, self._folder, self._modules = lower_case, folder, modules
        self.kind = type(model.transformer).__name__
        config = read_settings(modules.transformer / "config.json", dict)
        stack: Any = model.transformer.encoder if config["model_type"] in ENCODER_OF_TWO else model.transformer
        self.blocks, self.layout = hugging_face_blocks(stack)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
        self._pad_id = next(number for number in ids if number is not None)
        model.pooling.skip = 0 if modules.include_prompt else self._prefix_tokens()
        self.example, _ = self.tokenized(["a photo of a cup"])
        self.out_width = output_width(OPTION, self)
        settings = {
            "config": {name: value for name, value in config.items() if name not in _NOT_FEATURES},
            "modules": modules.described,
            "tokenizer": _tokenizer_state(tokenizer),
            "max_length": max_length,
            "prefix": prefix,
            "lower_case": lower_case,
        }
        self.fingerprint = weights_digest(model, json.dumps(settings, sort_keys=True))

    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N] with `PADDING` behind shorter ones, and how many texts have more tokens than it reads.
        """
        if not texts:
            return torch.empty(0, 1, dtype=torch.int64), 0
        found = self._encodings(texts)
        # A text without a token would leave nothing to attend to.
        rows = [torch.tensor(encoding.ids or [self._pad_id]) for encoding in found]
        ids_BN = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
        return ids_BN, sum(bool(encoding.overflowing) for encoding in found)

    def encode(self, inputs: Tensor) -> Tensor:
        """Run transformer and pooling, token ids int64 [B, N] to [B, out_width]."""
        mask_BN = inputs != PADDING
        rows_BD: Tensor = self.model(inputs.where(mask_BN, self._pad_id), mask_BN)
        return rows_BD

    def token_states(self, inputs: Tensor) -> TokenStates:
        """Run the transformer alone; the mask leaves out padding."""
        mask_BN = inputs != PADDING
        return TokenStates(self.model.states(inputs.where(mask_BN, self._pad_id), mask_BN), mask_BN)

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut the columns that hold padding in all texts of the batch."""
        return inputs[:, : int((inputs != PADDING).sum(dim=1).max())] if len(inputs) else inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters."""
        return list(self.model.parameters())

    def save(self, folder: Path) -> None:
        """Write a folder as it was published: configuration and tokenizer unchanged, weights as they are now.

        Args:
            folder: Existing folder.
        """
        for source in filter(Path.is_dir, dict.fromkeys((self._folder, *self._modules.folders))):
            target = folder / source.relative_to(self._folder)
            target.mkdir(exist_ok=True)
            for path in (path for pattern in COPIED for path in source.glob(pattern) if path.name != INDEX_FILE):
                shutil.copyfile(path, target / path.name)
        _save(self.model.transformer, folder / self._modules.transformer.relative_to(self._folder))
        for name, module in self.model.behind.items():
            if module.state_dict():
                _save(module, folder / name)

    def _encodings(self, texts: list[str]) -> list[Any]:
        """Tokens of each text, and those cut off."""
        read = [self.prefix + text for text in texts]
        read = [text.lower() for text in read] if self._lower_case else read
        options = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        encodings: list[Any] = self.tokenizer(read, padding=False, **options).encodings
        return encodings

    def _prefix_tokens(self) -> int:
        """Tokens of the prefix, without the special one behind a text."""
        ids = self._encodings([""])[0].ids
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids) if ids else 0


def _tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """All that determines token ids; padding and truncation are set at each call."""
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in described.items() if key not in ("padding", "truncation")}


def _save(module: nn.Module, folder: Path) -> None:
    save_tensors(folder / WEIGHTS_FILE, module.state_dict())
