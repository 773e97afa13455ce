"""From token states to one row per text, as a sentence-transformers configuration describes it.

`modules.json` lists the modules: a transformer, a pooling, and any of dense layers and a normalisation behind it. A folder
without it is pooled by the mean over its tokens, as sentence-transformers does.

Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.

Legend: B batch, N tokens, D width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist.errors import UserError

OPTION = "encoder.text"
MODULES_FILE, WEIGHTS_FILE = "modules.json", "model.safetensors"
Kind = TypeVar("Kind", dict[str, Any], list[Any])
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}


class Pooling(nn.Module):
    """One or more poolings, side by side.

    Args:
        modes: Their names, in this order: `cls`, `max`, `mean`, `mean_sqrt_len_tokens`, `weightedmean`, `lasttoken`.
        skip: Leading tokens, of a prefix, that are left out.
    """

    def __init__(self, modes: Sequence[str], skip: int = 0) -> None:
        super().__init__()
        self.modes, self.skip = tuple(modes), skip

    def forward(self, states_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Pool token states [B, N, D] with their mask (true for tokens, padding behind them) to [B, D of all modes]."""
        counted_BN = mask_BN.clone()
        counted_BN[:, : self.skip] = False
        counted_BN1 = counted_BN[:, :, None]
        rows = [_POOLINGS[mode](states_BND, counted_BN1) for mode in self.modes]
        return torch.cat(rows, dim=1)


def _first(states_BND: Tensor, counted_BN1: Tensor) -> Tensor:
    return states_BND.take_along_dim(counted_BN1.int().argmax(dim=1, keepdim=True), dim=1).squeeze(1)


def _last(states_BND: Tensor, counted_BN1: Tensor) -> Tensor:
    from_end_B11 = counted_BN1.flip(1).int().argmax(dim=1, keepdim=True)
    return states_BND.take_along_dim(states_BND.shape[1] - 1 - from_end_B11, dim=1).squeeze(1)


def _max(states_BND: Tensor, counted_BN1: Tensor) -> Tensor:
    return states_BND.masked_fill(~counted_BN1, torch.finfo(states_BND.dtype).min).amax(dim=1)


def _weighted(states_BND: Tensor, weights_BN1: Tensor, power: float = 1.0) -> Tensor:
    weights_BN1 = weights_BN1.to(states_BND.dtype)
    return (states_BND * weights_BN1).sum(dim=1) / weights_BN1.sum(dim=1).clamp(min=1e-9) ** power


def _by_position(states_BND: Tensor, counted_BN1: Tensor) -> Tensor:
    positions_N1 = torch.arange(1, states_BND.shape[1] + 1, device=states_BND.device)[:, None]
    return _weighted(states_BND, counted_BN1 * positions_N1)


_POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _weighted,
    "mean_sqrt_len_tokens": lambda states_BND, counted_BN1: _weighted(states_BND, counted_BN1, power=0.5),
    "weightedmean": _by_position,
    "lasttoken": _last,
}
_FLAGS = {  # how older versions spell the modes, in the order in which they are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Normalize(nn.Module):
    """Scales rows to length 1."""

    def forward(self, rows_BD: Tensor) -> Tensor:
        """Scale rows [B, D]."""
        return F.normalize(rows_BD, dim=1)


class Dense(nn.Module):
    """A linear layer with an activation.

    Args:
        linear: The layer.
        activation: The activation.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, rows_BD: Tensor) -> Tensor:
        """Map rows [B, D] to [B, D']."""
        mapped_BD: Tensor = self.activation(self.linear(rows_BD))
        return mapped_BD


@dataclass(frozen=True)
class SentenceModules:
    """What a folder says of itself."""

    transformer: Path
    """Folder of the transformer and its tokenizer."""
    modes: tuple[str, ...]
    """Names of the poolings."""
    include_prompt: bool
    """Whether the tokens of a prefix are pooled."""
    behind: dict[str, nn.Module]
    """What follows the pooling, in order; modules with weights by the name of their folder."""
    folders: tuple[Path, ...]
    """Folders of all modules."""
    described: str
    """All that features depend on, as JSON."""


def read_modules(folder: Path) -> SentenceModules:
    """Read the modules that a folder lists.

    Args:
        folder: A model of transformers, with or without a configuration of sentence-transformers.

    Returns:
        Its modules.

    Raises:
        UserError: Files that are missing or malformed, or a module that needs code of its own.
    """
    if not (folder / MODULES_FILE).is_file():
        return SentenceModules(folder, ("mean",), True, {}, (folder,), json.dumps([["mean"], True]))
    listed = read_settings(folder / MODULES_FILE, list)
    kinds = _kinds(listed, folder)
    paths = [_inside(folder, str(module.get("path", ""))) for module in listed]
    pooling = read_settings(paths[1] / "config.json", dict)
    modes = _modes(pooling, paths[1])
    behind: dict[str, nn.Module] = {}
    described: list[Any] = [modes, pooling.get("include_prompt", True)]
    for kind, path in zip(kinds[2:], paths[2:]):
        if kind == "Dense":
            behind[path.name], settings = _dense(path)
            described.append(settings)
        elif kind == "Normalize":
            behind[path.name] = Normalize()
            described.append(kind)
    return SentenceModules(
        paths[0], modes, bool(described[1]), behind, tuple(paths), json.dumps(described, sort_keys=True)
    )


def _kinds(listed: list[Any], folder: Path) -> list[str]:
    """Names of the modules, all of which are supported, in order."""
    types = [str(module.get("type", "")) if isinstance(module, dict) else "" for module in listed]
    kinds = [kind.rpartition(".")[2] for kind in types]
    ours = all(kind.startswith("sentence_transformers.") for kind in types)
    if kinds[:2] != ["Transformer", "Pooling"] or not ours or not set(kinds[2:]) <= {"Dense", "Normalize", "Dropout"}:
        raise UserError(
            f"{OPTION}: {folder / MODULES_FILE} lists {', '.join(kinds) or 'nothing'}; expected Transformer and Pooling of "
            "sentence-transformers, then any of Dense and Normalize"
        )
    return kinds


def read_settings(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON file of a folder.

    Args:
        path: The file.
        kind: `dict` or `list`.

    Returns:
        Its content.

    Raises:
        UserError: It is missing, no JSON, or of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{OPTION}: cannot read {path} ({error}); restore the folder as it was published") from error
    if not isinstance(content, kind):
        raise UserError(f"{OPTION}: {path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def _inside(folder: Path, path: str) -> Path:
    """The folder of a module, which must lie inside."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or len(parts.parts) > 1:
        raise UserError(f"{OPTION}: {folder / MODULES_FILE} names the path {path!r}, expected a folder directly inside")
    return folder / path


def _modes(pooling: dict[str, Any], folder: Path) -> tuple[str, ...]:
    given = pooling.get("pooling_mode", [mode for flag, mode in _FLAGS.items() if pooling.get(flag)] or "mean")
    modes = (given,) if isinstance(given, str) else tuple(given)
    if not modes or not set(modes) <= _POOLINGS.keys():
        raise UserError(
            f"{OPTION}: {folder / 'config.json'} asks for pooling {given!r}, expected one of {', '.join(_POOLINGS)}"
        )
    return modes


def _dense(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    settings = read_settings(folder / "config.json", dict)
    named = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(named.rpartition(".")[2]) if named.startswith("torch.nn.modules.") else None
    plain = settings.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if activation is None or not plain or settings.get("use_residual"):
        raise UserError(
            f"{OPTION}: {folder / 'config.json'} describes a layer that is not supported; expected one of pooled rows, without "
            f"residual, with activation {', '.join(_ACTIVATIONS)} of torch.nn"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{OPTION}: {folder} has no {WEIGHTS_FILE}; weights in other formats are not read")
    try:
        linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
        dense = Dense(linear, activation())
        dense.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except Exception as error:  # missing settings, safetensors' errors, weights of other shapes
        raise UserError(f"{OPTION}: cannot load {folder} ({' '.join(str(error).split())[:200]})") from error
    return dense, {"dense": named}
