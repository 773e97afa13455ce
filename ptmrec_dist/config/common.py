"""What several commands take, and how a value is judged."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptmrec_dist.errors import UserError


def require(ok: bool, name: str, got: object, expected: str) -> None:
    """Refuse a value.

    Args:
        ok: what must hold.
        name: the setting, as the command line spells it.
        got: the value given.
        expected: what the setting takes, in words.

    Raises:
        UserError: `ok` is false.
    """
    if not ok:
        raise UserError(f"{name}: got {got!r}, expected {expected}")


def check_model_name(name: str) -> None:
    """Refuse a name that the model registry does not take, or that no `models:/` URI can spell.

    Args:
        name: name of a registered model.

    Raises:
        UserError: it is such a name.
    """
    bad = [character for character in name if character in "/:?@" or not character.isprintable()]
    ok = not bad and name == name.strip() and name not in ("", ".", "..") and len(name) <= 256
    require(
        ok, "name", name, "1 to 256 printable characters without / : ? @ and without blanks around them, not . or .."
    )


def check_alias(alias: str) -> None:
    """Refuse an alias that the model registry does not take.

    Args:
        alias: alias of a version.

    Raises:
        UserError: it is such an alias.
    """
    ok = re.fullmatch(r"[\w-]{1,255}", alias) and alias.lower() != "latest" and not re.fullmatch(r"[vV]\d+", alias)
    expected = "at most 255 letters, digits, _ and -, but neither 'latest' nor the like of 'v1'"
    require(bool(ok), "alias", alias, expected)


def require_device(device: str, *, indexed: bool = True) -> None:
    """Refuse the name of a device that no command runs on.

    Args:
        device: The setting `device`.
        indexed: Whether a GPU can be named by its number; not where ranks each have their own.

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
    """Where the inputs of a finished run are now; by default beside it as before, or else where they were."""

    shards: Path | None = None
    """Packed data set of the run, where it was moved; it must have the same fingerprint."""
    features: Path | None = None
    """Frozen features of the run, where they were moved; they must have the same fingerprint."""
    encoder: Path | None = None
    """Folder of the run's encoder, where it was moved; it must have the same fingerprint."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """A Ray cluster, and what a rank takes of it."""

    address: str | None = None
    """`auto` or HOST:PORT of a running cluster; by default RAY_ADDRESS, and without one Ray is started on this machine."""
    cpus: float = 1.0
    """Processors of a rank."""
    gpus: float = 0.0
    """GPUs of a rank."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Whether ranks that train together lie on few nodes or on many; strictly: on one, or each on its own."""
    grows: bool = False
    """The cluster starts nodes on demand: what it has now says nothing about how large a trial may be."""

    def __post_init__(self) -> None:
        require(self.cpus >= 0, "ray.cpus", self.cpus, "0 or more")
        require(self.gpus >= 0, "ray.gpus", self.gpus, "0 or more")
        require(self.cpus + self.gpus > 0, "ray.cpus", self.cpus, "more than 0 where a rank has no GPU")
        client = (self.address or "").startswith("ray://")
        require(not client, "ray.address", self.address, "auto or HOST:PORT; from outside use `ray job submit`")
