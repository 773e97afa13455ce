"""Features of all items on disk: one memory-mapped array per modality (row = item index), and their provenance."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptmrec_dist.data.npy import open_npy
from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.files import parse_json, staged, typed
from ptmrec_dist.lineage import with_hints, without_hints

_TABLES = ("image", "text", "fused")


@dataclass(frozen=True)
class FeatureManifest:
    """What the arrays of a features folder were made from."""

    fingerprint: str
    """sha256 over the arrays and what they were made from."""
    data: str
    """Fingerprint of the packed data set."""
    encoder: str | None
    """Fingerprint of the backbone; None for arrays that came from elsewhere."""
    encoder_settings: dict[str, Any]
    """Settings of the backbone (`EncoderConfig`), with folders where they are now; empty for arrays that came from
    elsewhere."""
    widths: dict[str, int]
    """Modality to width of its rows."""
    filled: dict[str, int] = field(default_factory=dict)
    """Modality to the number of items that lack it, whose rows are the mean of the others; modalities that no item
    lacks are left out. The items table of the data set lists the items."""
    cut_texts: int = 0
    """Texts that are longer than the encoder reads."""
    content: str | None = None
    """Fingerprint of the images and texts that were read (`Dataset.content`); None for other arrays than frozen features."""
    precision: str | None = None
    """Floating-point precision of the encoder; None for other arrays than frozen features, and for those that earlier versions
    computed, which did not record it."""


@dataclass(frozen=True)
class FeatureStore:
    """An opened features folder."""

    folder: Path
    """Path of the folder."""
    manifest: FeatureManifest
    """What it was made from."""
    tables: dict[str, np.ndarray]
    """Modality to float32 [I, d_m], memory-mapped."""


def read_feature_manifest(folder: Path) -> FeatureManifest:
    """Read what a features folder was made from.

    Args:
        folder: Features folder.

    Returns:
        Its manifest.

    Raises:
        UserError: No such folder, or one that `ptmrec features` did not write.
    """
    if not folder.exists():
        raise UserError(f"features: no files at {folder}; expected a folder that `ptmrec features` wrote")
    if not (folder / "manifest.json").is_file():
        raise UserError(f"features: {folder} has no manifest.json; expected a folder that `ptmrec features` wrote")
    try:
        content = parse_json((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest = typed(FeatureManifest, _current(content, folder))
        outside = [name for name in manifest.widths if name not in _TABLES]
        if outside:
            raise ValueError(f"got {outside[0]!r}, expected {' and '.join(_TABLES)}")
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"features: {folder}/manifest.json was not written by `ptmrec features` ({on_one_line(error)}); give its --out, or "
            "run it again"
        ) from error


def open_features(folder: Path, data_fingerprint: str, num_items: int) -> FeatureStore:
    """Open a features folder and check that it belongs to a data set.

    Args:
        folder: Features folder.
        data_fingerprint: Fingerprint of the packed data set that it is used with.
        num_items: Rows expected.

    Returns:
        The opened store.

    Raises:
        UserError: No such folder, features of another data set, arrays of another shape, or not those of its manifest.
    """
    manifest = read_feature_manifest(folder)
    if manifest.data != data_fingerprint:
        raise UserError(
            f"features: {folder} was made from data {manifest.data[:12]}, but the shards are {data_fingerprint[:12]}; "
            "run `ptmrec features` on these shards"
        )
    tables = {name: _open_table(folder / f"{name}.npy", (num_items, width)) for name, width in manifest.widths.items()}
    found = _fingerprint(tables, manifest.data, manifest.encoder)
    if found != manifest.fingerprint:
        raise UserError(
            f"features: the arrays of {folder} are {found[:12]}, but its manifest lists {manifest.fingerprint[:12]}: they "
            "were changed; run `ptmrec features` again"
        )
    return FeatureStore(folder, manifest, tables)


def write_features(
    folder: Path,
    tables: dict[str, np.ndarray],
    *,
    data: str,
    encoder: str | None = None,
    settings: dict[str, Any] | None = None,
    filled: dict[str, int] | None = None,
    cut_texts: int = 0,
    content: str | None = None,
    precision: str | None = None,
) -> FeatureManifest:
    """Write a features folder, replacing an older one only when the new one is complete.

    Args:
        folder: Folder to write.
        tables: Modality to float32 [I, d_m].
        data: Fingerprint of the packed data set.
        encoder: Fingerprint of the backbone; None for arrays that came from elsewhere.
        settings: Settings of the backbone (`EncoderConfig.recorded`); None for arrays that came from elsewhere.
        filled: Modality to the number of items that lack it; by default none.
        cut_texts: Texts that are longer than the encoder reads.
        content: Fingerprint of the images and texts that were read, for frozen features.
        precision: Floating-point precision of the encoder, for frozen features.

    Returns:
        The manifest written.
    """
    check_replaceable(folder)
    widths = {name: int(table.shape[1]) for name, table in tables.items()}
    fingerprint = _fingerprint(tables, data, encoder)
    manifest = FeatureManifest(
        fingerprint, data, encoder, settings or {}, widths, filled or {}, cut_texts, content, precision
    )
    written = asdict(manifest) | {"encoder_settings": with_hints(manifest.encoder_settings, folder)}
    with staged(folder) as fresh:
        for name, table in tables.items():
            np.save(fresh / f"{name}.npy", table)
        (fresh / "manifest.json").write_text(json.dumps(written, indent=1))
    return manifest


def check_replaceable(folder: Path) -> None:
    """Refuse to write features over something that is not a features folder.

    Args:
        folder: Folder about to be replaced.

    Raises:
        UserError: It holds something else.
    """
    if not folder.exists():
        return
    known = {"manifest.json", "neighbours", *(f"{name}.npy" for name in _TABLES)}
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= known:
        raise UserError(f"out: {folder} exists and is not a features folder; choose another --out")


def _current(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of a manifest as they are read now; version 0.1 had one for each setting of the encoder."""
    if "encoder_model" in content:
        model, pretrained = content.pop("encoder_model"), content.pop("encoder_pretrained")
        hint = content.pop("encoder_relative", None)
        old = {"model": model, "pretrained": pretrained, "relative": hint}
        content["encoder_settings"] = {} if model is None else old
    return content | {"encoder_settings": without_hints(content["encoder_settings"], folder)}


def _fingerprint(tables: dict[str, np.ndarray], data: str, encoder: str | None) -> str:
    digest = hashlib.sha256(f"{data}:{encoder}".encode())
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table).data)
    return digest.hexdigest()


def _open_table(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        table = open_npy(path)
    except ValueError as error:
        raise UserError(f"features: cannot read {path} ({error}); run `ptmrec features` again") from error
    if table.shape != shape or table.dtype != np.float32:
        raise UserError(f"features: {path} is {table.dtype} {table.shape}, expected float32 {shape}")
    return table
