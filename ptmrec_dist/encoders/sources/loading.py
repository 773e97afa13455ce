"""Loading an encoder of any source, from where it is published, from a folder of ours, or from a run that tuned one."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.config.common import encoder_folders
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import sha256
from ptmrec_dist.lineage import split_scheme, without_hints

TUNED_FILE = "tuned.safetensors"
"""Tuned weights beside an encoder, for prompts or adapters, which the published formats do not cover."""
RUN_FILE, RUN_TUNED_FILE = "run.json", "encoder.safetensors"
"""Lineage of a training run, and its tuned weights: a run folder is an encoder, too."""
_RAW_FILE = "raw"
"""Marks an encoder whose features keep their length."""


def load_backbone(settings: EncoderConfig, raw: bool = False) -> Backbone:
    """Load an encoder and freeze it.

    Args:
        settings: Where it is.
        raw: Whether its features keep the length that the model gives them.

    Returns:
        The frozen encoder on the CPU.

    Raises:
        UserError: An unknown name or tag, a folder without configuration or weights, weights that do not fit.
    """
    if settings.model is None:
        from ptmrec_dist.encoders.sources.pair import load_pair  # transformers takes seconds

        return _as_raw(load_pair(settings), raw)
    folder = Path(split_scheme(settings.model)[1])
    if (folder / RUN_FILE).is_file():
        return _as_raw(_load_from_run(folder, settings.pretrained), raw)
    backbone = _load_folder_or_name(settings)
    return reduce(_with_tuned, _tuned_files(folder), _as_raw(backbone, raw or (folder / _RAW_FILE).is_file()))


def load_backbone_of(made: Mapping[str, Any]) -> Backbone:
    """Load the encoder that features were read from.

    Args:
        made: Its settings and `fingerprint`, as a run records them.

    Returns:
        The frozen encoder.

    Raises:
        UserError: It cannot be loaded, or it has changed.
    """
    settings = {field.name: made[field.name] for field in fields(EncoderConfig) if field.name in made}
    backbone = load_backbone(EncoderConfig(**settings), raw=made.get("raw", False))
    if backbone.fingerprint != made["fingerprint"]:
        named = " and ".join(str(made[name]) for name in ("model", "image", "text") if made.get(name))
        raise UserError(
            f"encoder: {named} is {backbone.fingerprint[:12]}, but the features came from {made['fingerprint'][:12]}; "
            "restore the old encoder, or extract features and train again"
        )
    return backbone


def tuned_fingerprint(encoder: str, tuned: Path) -> str:
    """Compute the fingerprint of an encoder with tuned weights.

    Args:
        encoder: Fingerprint of the encoder before tuning.
        tuned: File of tuned weights.

    Returns:
        sha256 of both.
    """
    return hashlib.sha256(f"{encoder} {sha256(tuned)}".encode()).hexdigest()


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write an encoder as a local folder that `load_backbone` reads, before a tuning method is attached.

    Args:
        backbone: The encoder.
        folder: Folder to write into; created if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save(folder)
    if backbone.raw:
        (folder / _RAW_FILE).touch()
    for tuned, name in zip(backbone.tuned, _tuned_names()):
        shutil.copy(tuned, folder / name)


def _load_folder_or_name(settings: EncoderConfig) -> Backbone:
    from ptmrec_dist.encoders.sources.open_clip import load_open_clip
    from ptmrec_dist.encoders.sources.pair import PAIR_FILE, load_saved_pair
    from ptmrec_dist.encoders.sources.vlmo.source import is_unified, load_unified

    scheme, name = split_scheme(str(settings.model))
    if scheme == "vlmo:" or is_unified(Path(name)):
        if settings.pretrained is not None:
            raise UserError(
                f"encoder.pretrained: got {settings.pretrained!r} with {settings.model}, which has its own weights"
            )
        return load_unified(name)
    folder = Path(name)
    return load_saved_pair(folder) if (folder / PAIR_FILE).is_file() else load_open_clip(settings)


def _load_from_run(folder: Path, pretrained: str | None) -> Backbone:
    """The encoder that a run started from, with the weights that the run tuned."""
    if pretrained is not None:
        raise UserError(f"encoder.pretrained: got {pretrained!r} with a run; a run has its own weights")
    try:
        made = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["encoder"]
        if made is None:
            raise UserError(f"encoder.model: the run {folder} has no encoder; expected a run on an encoder's features")
        made = without_hints(made, folder)
        for path in encoder_folders(made).values():
            if not Path(path).exists():
                raise UserError(
                    f"encoder: no files at {path}, where {folder} found them; bring them back or link to them there"
                )
        backbone = load_backbone_of(made)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"encoder.model: {folder / RUN_FILE} is not the lineage of a run ({error!r})") from error
    tuned = folder / RUN_TUNED_FILE
    return _with_tuned(backbone, tuned) if tuned.is_file() else backbone


def _as_raw(backbone: Backbone, raw: bool) -> Backbone:
    if not raw or backbone.raw:
        return backbone
    fingerprint = hashlib.sha256(f"{backbone.fingerprint} raw".encode()).hexdigest()
    return replace(backbone, fingerprint=fingerprint, raw=True)


def _with_tuned(backbone: Backbone, tuned: Path) -> Backbone:
    fingerprint = tuned_fingerprint(backbone.fingerprint, tuned)
    return replace(backbone, fingerprint=fingerprint, tuned=(*backbone.tuned, tuned))


def _tuned_names() -> Iterator[str]:
    """Names of the files of an encoder that was tuned once, twice, ..."""
    yield TUNED_FILE
    for number in itertools.count(2):
        yield TUNED_FILE.replace(".", f"-{number}.")


def _tuned_files(folder: Path) -> list[Path]:
    return list(itertools.takewhile(Path.is_file, (folder / name for name in _tuned_names())))
