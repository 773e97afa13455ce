"""Export of a tuned encoder (`ptmrec export`): written, loaded by the other library, compared, and only then moved in place.

ptmrec export --run runs/prompts --format onnx --out exported/prompts
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from ptmrec_dist.config import EncoderConfig, ExportConfig, method_entry
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import RUN_FILE, load_backbone, load_backbone_of
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.export.choice import format_named
from ptmrec_dist.export.formats import Format, features_of, least_cosine
from ptmrec_dist.files import staged
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.training.records import ENCODER_FILE, read_record, require_encoder

RECORD_FILE = "export.json"
"""What was exported, and how closely the other library agreed; marks a folder that may be replaced."""
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Prompts or adapters beside a frozen model, named as `peft` names such files."""
_LIBRARIES = {"open_clip": "open_clip_torch", "huggingface": "transformers", "timm": "timm", "onnx": "onnxruntime"}
_LEAST_COSINE = 1 - 1e-5
_TEXTS = ["a photo of a cup", "lamp", "A large green chair, made of wood: number 27.", "two red things and a blue one"]


@exclusive_out
def export_encoder(config: ExportConfig) -> None:
    """Write a run's encoder in the format of another library (`ptmrec export`).

    Args:
        config: Settings.

    Raises:
        UserError: A run without an encoder, a format that cannot hold it, a folder of something else.
        Fault: The other library computes other features; nothing was written.
    """
    _check_replaceable(config.out)
    kind = format_named(config.format)
    backbone, modalities, tuned = _encoder_of(config)
    files = [*backbone.tuned, *([] if tuned is None else [tuned])]
    adapter = _left_apart(kind, files, config)
    encoder = Encoder(backbone if adapter is None else replace(backbone, tuned=()), modalities)
    if tuned is not None and adapter is None:
        encoder.load_tuned(tuned)
        encoder.merge()
    encoder.eval().requires_grad_(False)
    written = _written(kind, encoder, config)
    with staged(config.out) as fresh:
        kind.write(encoder, fresh)
        agreed = _compare(kind, encoder, fresh, written, config)
        if adapter is not None:
            _write_adapter(adapter, fresh)
        record = {
            "run": str(config.run.resolve()),
            "encoder": backbone.fingerprint,
            "tuned": [_described(path) for path in files],
            "format": config.format,
            "checked_with": f"{_LIBRARIES[config.format]} {version(_LIBRARIES[config.format])}",
            "least_cosine": agreed,
        }
        (fresh / RECORD_FILE).write_text(json.dumps(record, indent=1))
    cosines = ", ".join(f"{modality} {cosine:.7f}" for modality, cosine in agreed.items())
    print(f"{config.out}: features equal by {record['checked_with']} (least cosine: {cosines})")
    _explain(kind, encoder, adapter is not None)


def _left_apart(kind: Format, files: Sequence[Path], config: ExportConfig) -> Path | None:
    """The prompts or adapters that the format cannot hold, which are written beside the model."""
    attached = [path for path in files if not method_entry(_described(path)["method"]).mergeable]
    if not attached or kind.takes_attached:
        return None
    if len(files) > 1:
        raise UserError(
            f"format: {config.run} was tuned {len(files)} times, and {attached[0]} cannot be merged into the weights; expected "
            "onnx, which takes both"
        )
    return attached[0]


def _explain(kind: Format, encoder: Encoder, apart: bool) -> None:
    """Say what is not in the folder, and what it takes to load it."""
    if apart:
        print(
            f"The model is the one before tuning; what was tuned is in {ADAPTER_FILE}. --format onnx has both in one graph."
        )
    advice = kind.advice(encoder)
    if advice is not None:
        print(advice)
    written = kind.modalities(encoder)
    for modality in (modality for modality in encoder.towers if modality not in written):
        print(f"The {modality} model is not part of this format; export it by another one.")


def _written(kind: Format, encoder: Encoder, config: ExportConfig) -> tuple[str, ...]:
    """Modalities that the format takes of an encoder; at least one."""
    written = kind.modalities(encoder)
    if not written:
        raise UserError(
            f"format: got {config.format}, but {config.run} has {_kinds(encoder)}; expected {_others(encoder)}"
        )
    return written


def _encoder_of(config: ExportConfig) -> tuple[Backbone, tuple[str, ...], Path | None]:
    """The encoder of a run or a folder, its modalities in use, and the weights that the run tuned."""
    if not (config.run / RUN_FILE).is_file():
        backbone = _encoder_in(config.run)
        return backbone, backbone.modalities, None
    record = read_record(config.run, config)
    if record.encoder is None:
        raise UserError(f"run: {config.run} has no encoder; expected a run on features of one")
    require_encoder(record, config.run)
    tuned = config.run / ENCODER_FILE
    return load_backbone_of(record.encoder), tuple(record.modalities), tuned if tuned.is_file() else None


def _encoder_in(folder: Path) -> Backbone:
    try:
        return load_backbone(EncoderConfig(model=str(folder)))
    except UserError as error:
        reason = str(error).partition(": ")[2]  # without the name of an option that this command does not have
        raise UserError(
            f"run: got {folder}, expected the folder of a run, or of an encoder that `ptmrec contrastive` wrote ({reason})"
        ) from error


def _compare(
    kind: Format, encoder: Encoder, folder: Path, modalities: Sequence[str], config: ExportConfig
) -> dict[str, float]:
    """Features by the other library must be ours."""
    images = _images()
    ours, others = features_of(encoder, images, _TEXTS), kind.features(folder, encoder, images, _TEXTS)
    agreed = {modality: least_cosine(ours[modality], others[modality]) for modality in modalities if modality in ours}
    for modality, cosine in agreed.items():
        if cosine < _LEAST_COSINE:
            raise Fault(
                f"export: {_LIBRARIES[config.format]} computes other {modality} features than this encoder (cosine "
                f"{cosine:.6f}, expected {_LEAST_COSINE}); {config.out} was not written"
            )
    return agreed


def _images() -> list[Image.Image]:
    """Images of different sizes and content."""
    rng = np.random.default_rng(0)
    sizes = [(300, 220), (64, 64), (180, 400), (33, 50)]
    slopes = [np.add.outer(np.linspace(0, 200, height), np.linspace(0, 55, width)) for width, height in sizes]
    return [Image.fromarray((slope[..., None] * rng.random(3)).astype(np.uint8)) for slope in slopes]


def _write_adapter(tuned: Path, folder: Path) -> None:
    """Write prompts or adapters, and what they are, beside the frozen model."""
    described = _described(tuned)
    shutil.copyfile(tuned, folder / ADAPTER_FILE)
    config = {
        "peft_type": described["method"].upper(),
        "base_model_name_or_path": ".",
        **json.loads(described["settings"]),
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1))


def _described(tuned: Path) -> dict[str, str]:
    """Method and settings in a file of tuned weights."""
    try:
        with safe_open(tuned, "pt") as file:
            described = file.metadata() or {}
        return {name: described[name] for name in ("method", "settings")}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"encoder: {tuned} does not hold tuned weights ({error!r}); tune again") from error


def _kinds(encoder: Encoder) -> str:
    return " and ".join(f"the {modality} model {tower.kind}" for modality, tower in encoder.towers.items())


def _others(encoder: Encoder) -> str:
    names = [name for name in ("open_clip", "huggingface", "timm") if format_named(name).modalities(encoder)]
    return " or ".join([*names, "onnx"])


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (out / RECORD_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {out} exists and was not written by `ptmrec export`; choose another --out")
