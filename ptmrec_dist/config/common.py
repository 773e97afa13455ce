"""Settings common to several commands, and checks of values."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ptmrec_dist.errors import UserError
from ptmrec_dist.hardware import cores
from ptmrec_dist.lineage import split_scheme

_LONGEST = 1_000_000_000
"""Seconds; Python waits for at most nine times as many."""
_PROCESSES_PER_CORE = 32
"""Some wait for disks or the network while others compute; each takes hundreds of megabytes and seconds to start."""


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


def require_timeout(seconds: float) -> None:
    """Refuse a time to wait that is none, or longer than clocks can count.

    Args:
        seconds: The setting `timeout`.

    Raises:
        UserError: It is not positive, or more than thirty years.
    """
    require(0 < seconds <= _LONGEST, "timeout", seconds, f"more than 0 seconds, at most {_LONGEST}")


def require_processes(name: str, got: int | None, least: int = 1) -> None:
    """Refuse more processes than this machine can sensibly start.

    Args:
        name: The setting.
        got: Its value; None where it has a default of its own.
        least: Smallest value.

    Raises:
        UserError: It is smaller than `least`, or more than `_PROCESSES_PER_CORE` for each core.
    """
    most = _PROCESSES_PER_CORE * cores()
    expected = f"{least} to {most}, which is {_PROCESSES_PER_CORE} for each of the {cores()} cores here"
    require(got is None or least <= got <= most, name, got, expected)


def require_seeds(name: str, *seeds: int) -> None:
    """Refuse seeds that not all generators of random numbers take.

    Args:
        name: The setting.
        *seeds: Its values.

    Raises:
        UserError: One is negative, or takes more than 32 bits.
    """
    for seed in seeds:
        require(0 <= seed < 2**32, name, seed, f"0 to {2**32 - 1}")


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
    """The encoder: an image-text model, or separate models of images and texts, one or both."""

    model: str | None = None
    """open_clip model name (`ViT-B-32`, `hf-hub:ORGANISATION/NAME`), a folder with `open_clip_config.json` and `.safetensors`
    weights, a run that tuned an encoder, or `vlmo:FILE`, `vlmo:FOLDER`, `vlmo:tiny` (VLMo and BEiT-3)."""
    pretrained: str | None = None
    """open_clip's tag of pretrained weights (`laion2b_s34b_b79k`); not for a folder."""
    image: str | None = None
    """Image encoder instead of `model`: `timm:NAME` or `timm:FOLDER` with `config.json` and `model.safetensors`."""
    text: str | None = None
    """Text encoder instead of `model`: `hf:NAME` or `hf:FOLDER`, a model of Hugging Face transformers; pooling and maximum
    length are those of its sentence-transformers configuration, where it has one."""
    prefix: str | None = None
    """Put before every text, for text encoders that were trained with one (`'passage: '`)."""
    prompt_name: str | None = None
    """Prefix chosen by its name among those that the text encoder's configuration lists (`passage`)."""

    def __post_init__(self) -> None:
        separate = self.image or self.text
        require(
            bool(self.model) != bool(separate),
            "encoder",
            {name: value for name, value in asdict(self).items() if value is not None},
            "--encoder.model, or --encoder.image and --encoder.text, one or both",
        )
        require(not (self.pretrained and separate), "encoder.pretrained", self.pretrained, "a tag with --encoder.model")
        for name, scheme in {"image": "timm:", "text": "hf:"}.items():
            value = getattr(self, name)
            known = value is None or (value.startswith(scheme) and value != scheme)
            require(known, f"encoder.{name}", value, f"{scheme}NAME or {scheme}FOLDER")
            elsewhere = f"an image-text model; name this one by --encoder.{name} {self.model}"
            require(not (self.model or "").startswith(scheme), "encoder.model", self.model, elsewhere)
        for name in ("prefix", "prompt_name"):
            require(
                bool(getattr(self, name) is None or self.text), f"encoder.{name}", getattr(self, name), "--encoder.text"
            )
        both = self.prefix is not None and self.prompt_name is not None
        require(not both, "encoder.prompt_name", self.prompt_name, "either a prefix or the name of one")

    def recorded(self) -> dict[str, str | None]:
        """Describe the encoder for a record: folders as absolute paths, so that they are found from any working directory.

        Returns:
            `model` and `pretrained`; or those of the other settings that are given.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("model", "image", "text"):
            if name in given:
                scheme, path = split_scheme(given[name])
                local = Path(path).exists() if scheme == "vlmo:" else Path(path).is_dir()  # weights may be one file
                given[name] = scheme + (str(Path(path).resolve()) if local else path)
        return given if self.model is None else {"pretrained": None, **given}


def encoder_label(made: Mapping[str, Any]) -> str:
    """Name an encoder briefly, for reports.

    Args:
        made: Its record.

    Returns:
        The last parts of its names or folders.
    """
    names = [split_scheme(made[name])[1] for name in ("model", "image", "text") if made.get(name)]
    return " and ".join(Path(name).name for name in names)


def encoder_folders(made: Mapping[str, Any]) -> dict[str, str]:
    """List the folders of an encoder.

    Args:
        made: Its record.

    Returns:
        The field of `FindsEncoder` that says where it is now, to its folder as recorded; names are not among them.
    """
    fields = {"model": "encoder", "image": "image_encoder", "text": "text_encoder"}
    paths = {field: split_scheme(made.get(name) or "")[1] for name, field in fields.items()}
    return {field: path for field, path in paths.items() if Path(path).is_absolute()}


@dataclass(frozen=True, kw_only=True)
class FindsEncoder:
    """Paths of an encoder that a run or its features name; by default as recorded, relative to them, else absolute."""

    encoder: Path | None = None
    """Folder of the encoder, if it was moved; it must have the same fingerprint."""
    image_encoder: Path | None = None
    """Folder of the separate image encoder, if it was moved."""
    text_encoder: Path | None = None
    """Folder of the separate text encoder, if it was moved."""


@dataclass(frozen=True, kw_only=True)
class ReadsRun(FindsEncoder):
    """Paths of the inputs of a finished run; by default as recorded, relative to the run, else absolute."""

    shards: Path | None = None
    """Packed data set of the run, if it was moved; it must have the same fingerprint."""
    features: Path | None = None
    """Frozen features of the run, if they were moved; they must have the same fingerprint."""


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
