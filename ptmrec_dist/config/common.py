"""Settings common to several commands, and checks of values."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptmrec_dist.errors import UserError


def require(ok: bool, name: str, got: object, expected: str) -> None:
    """Check a value.

    Args:
        ok: Condition that must hold.
        name: The setting, as the command line spells it.
        got: The value given.
        expected: Description of the values that the setting takes.

    Raises:
        UserError: `ok` is false.
    """
    if not ok:
        shown = "none" if got is None else str(got) if isinstance(got, Path) else repr(got)
        raise UserError(f"{name}: got {shown}, expected {expected}")


def check_model_name(name: str) -> None:
    """Refuse a name that the model registry does not accept, or that cannot be part of a `models:/` URI.

    Args:
        name: Name of a registered model.

    Raises:
        UserError: The name is invalid.
    """
    bad = [character for character in name if character in "/:?@" or not character.isprintable()]
    ok = not bad and name == name.strip() and name not in ("", ".", "..") and len(name) <= 256
    require(
        ok, "name", name, "1 to 256 printable characters without / : ? @ and without surrounding blanks, not . or .."
    )


def check_alias(alias: str) -> None:
    """Refuse an alias that the model registry does not accept.

    Args:
        alias: Alias of a version.

    Raises:
        UserError: The alias is invalid.
    """
    ok = re.fullmatch(r"[\w-]{1,255}", alias) and alias.lower() != "latest" and not re.fullmatch(r"[vV]\d+", alias)
    expected = "at most 255 letters, digits, _ and -, but neither 'latest' nor a version such as 'v1'"
    require(bool(ok), "alias", alias, expected)


def require_device(device: str, *, indexed: bool = True) -> None:
    """Refuse the name of an unsupported device.

    Args:
        device: The setting `device`.
        indexed: Whether a GPU can be named by its number; not where each rank has its own.

    Raises:
        UserError: It is none of `auto`, `cpu`, `cuda` and, if `indexed`, `cuda:N`.
    """
    expected = "auto, cpu, cuda or cuda:N" if indexed else "auto, cpu or cuda (every rank uses a GPU of its own)"
    require(
        bool(re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?" if indexed else "auto|cpu|cuda", device)),
        "device",
        device,
        expected,
    )


Modalities = Literal["both", "image", "text"]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. The server comes from `MLFLOW_TRACKING_URI`, by default `sqlite:///mlflow.db`."""

    enabled: bool = True
    """Log this run to MLflow."""
    experiment: str = "ptmrec"
    """MLflow experiment."""
    parent: str | None = None
    """MLflow run that this one is shown under; by default stage 2 is shown under its stage 1."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The image-text encoder, as open_clip names it or as a local folder."""

    model: str
    """open_clip model name (`ViT-B-32`) or a folder with `open_clip_config.json` and `.safetensors` weights."""
    pretrained: str | None = None
    """open_clip's tag of pretrained weights (`laion2b_s34b_b79k`); not for a folder."""


@dataclass(frozen=True, kw_only=True)
class ReadsRun:
    """Paths of the inputs of a finished run; by default as recorded, relative to the run, else absolute."""

    shards: Path | None = None
    """Packed data set of the run, if it was moved; it must have the same fingerprint."""
    features: Path | None = None
    """Frozen features of the run, if they were moved; they must have the same fingerprint."""
    encoder: Path | None = None
    """Folder of the run's encoder, if it was moved; it must have the same fingerprint."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """A Ray cluster, and the resources of a rank."""

    address: str | None = None
    """`auto` or HOST:PORT of a running cluster; by default RAY_ADDRESS, and without one Ray is started on this machine."""
    cpus: float = 1.0
    """Processors of a rank."""
    gpus: float = 0.0
    """GPUs of a rank."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy of the ranks of a run: packed on few nodes or spread over many; strict: all on one node, or
    each on its own."""
    grows: bool = False
    """The cluster starts nodes on demand: its present size does not limit the size of a trial."""

    def __post_init__(self) -> None:
        require(self.cpus >= 0, "ray.cpus", self.cpus, "0 or more")
        require(self.gpus >= 0, "ray.gpus", self.gpus, "0 or more")
        require(self.cpus + self.gpus > 0, "ray.cpus", self.cpus, "more than 0 where a rank has no GPU")
        client = (self.address or "").startswith("ray://")
        require(not client, "ray.address", self.address, "auto or HOST:PORT; from outside use `ray job submit`")
