"""A file of tuned weights: the tensors that tuning changed, and the method that it belongs to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptmrec_dist.config import MethodConfig, method_config
from ptmrec_dist.errors import UserError

_FORMER = {"clip": "model", "prompts": "attached"}
"""Names that earlier versions gave to what holds a weight, and those of today."""


@dataclass(frozen=True)
class SavedTuning:
    """Content of a file of tuned weights."""

    path: Path
    """The file."""
    method: str
    """Name of the tuning method."""
    settings: MethodConfig
    """Its settings."""
    objectives: tuple[str, ...]
    """Objectives on pairs of image and text whose heads were trained, too."""
    state: Mapping[str, Tensor]
    """Name to tensor."""

    def refuse_misfit(self, expected: Mapping[str, Tensor], surplus_allowed: bool) -> None:
        """Compare the tensors with those that the method trains in an encoder.

        Args:
            expected: Name to tensor of the encoder.
            surplus_allowed: The file may have more.

        Raises:
            UserError: They differ in name or shape.
        """
        reason = _misfit(expected, self.state, surplus_allowed)
        if reason is not None:
            raise UserError(f"encoder: {self.path} was tuned in another encoder, or is damaged: {reason}; tune again")


def read_tuned(path: Path) -> SavedTuning:
    """Read a file of tuned weights.

    Args:
        path: `encoder.safetensors`, with the description of the method as its metadata.

    Returns:
        Its content.

    Raises:
        UserError: A file that cannot be read, or of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            state = {_renamed(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        settings = method_config(described["method"], **json.loads(described["settings"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"encoder: {path} does not hold tuned weights ({error!r}); tune again") from error
    objectives = tuple(described["objectives"].split(",")) if "objectives" in described else ()
    return SavedTuning(path, described["method"], settings, objectives, state)


def _misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], surplus_allowed: bool) -> str | None:
    """What is wrong with the tensors of a file; None if nothing is."""
    lacking, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if lacking:
        return f"it lacks {len(lacking)} of the {len(expected)} tensors that are tuned here ({lacking[0]})"
    if surplus and not surplus_allowed:
        return f"it has {len(surplus)} of which none is tuned here ({surplus[0]})"
    for name, value in expected.items():
        if found[name].shape != value.shape:
            return f"{name} is {tuple(found[name].shape)} instead of {tuple(value.shape)}"
    return None


def _renamed(name: str) -> str:
    """Today's name of a weight."""
    first, _, rest = name.partition(".")
    return f"{_FORMER.get(first, first)}.{rest}"
