"""Features of all items on disk: one memory-mapped array per modality (row = item index), and their provenance."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ptmrec_dist.errors import UserError
from ptmrec_dist.files import staged
from ptmrec_dist.lineage import find, relative_to


@dataclass(frozen=True)
class FeatureManifest:
    """What the arrays of a features folder were made from."""

    fingerprint: str
    """sha256 over the arrays and what they were made from."""
    data: str
    """Fingerprint of the packed data set."""
    encoder: str | None
    """Fingerprint of the backbone; None for arrays that came from elsewhere."""
    encoder_model: str | None
    """open_clip name or last known folder of the backbone, relative to this folder or absolute."""
    encoder_pretrained: str | None
    """open_clip tag of the backbone's weights."""
    widths: dict[str, int]
    """Modality to width of its rows."""
    filled: dict[str, int] = field(default_factory=dict)
    """Modality to the number of items that lack it, whose rows are the mean of the others; modalities that no item
    lacks are left out. The items table of the data set lists the items."""


@dataclass(frozen=True)
class FeatureStore:
    """An opened features folder."""

    folder: Path
    """Path of the folder."""
    manifest: FeatureManifest
    """What it was made from."""
    tables: dict[str, np.ndarray]
    """Modality to float32 [I, d_m], memory-mapped."""


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
    if not folder.exists():
        raise UserError(f"features: no files at {folder}; expected a folder that `ptmrec features` wrote")
    if not (folder / "manifest.json").is_file():
        raise UserError(f"features: {folder} has no manifest.json; expected a folder that `ptmrec features` wrote")
    try:
        content = json.loads((folder / "manifest.json").read_text())
        relative, model = content.pop("encoder_relative", None), content["encoder_model"]
        content["encoder_model"] = None if model is None else find(relative, model, folder)
        manifest = FeatureManifest(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"features: {folder}/manifest.json was not written by `ptmrec features` ({error})") from error
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
    model: str | None = None,
    pretrained: str | None = None,
    filled: dict[str, int] | None = None,
) -> FeatureManifest:
    """Write a features folder, replacing an older one only when the new one is complete.

    Args:
        folder: Folder to write.
        tables: Modality to float32 [I, d_m].
        data: Fingerprint of the packed data set.
        encoder: Fingerprint of the backbone; None for arrays that came from elsewhere.
        model: open_clip name or folder of the backbone.
        pretrained: open_clip tag of its weights.
        filled: Modality to the number of items that lack it; by default none.

    Returns:
        The manifest written.
    """
    check_replaceable(folder)
    widths = {name: int(table.shape[1]) for name, table in tables.items()}
    fingerprint = _fingerprint(tables, data, encoder)
    manifest = FeatureManifest(fingerprint, data, encoder, model, pretrained, widths, filled or {})
    relative = relative_to(model, folder) if model is not None and Path(model).is_absolute() else None
    with staged(folder) as fresh:
        for name, table in tables.items():
            np.save(fresh / f"{name}.npy", table)
        (fresh / "manifest.json").write_text(json.dumps(asdict(manifest) | {"encoder_relative": relative}, indent=1))
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
    known = {"manifest.json", "image.npy", "text.npy", "neighbours"}
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= known:
        raise UserError(f"out: {folder} exists and is not a features folder; choose another --out")


def _fingerprint(tables: dict[str, np.ndarray], data: str, encoder: str | None) -> str:
    digest = hashlib.sha256(f"{data}:{encoder}".encode())
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table).data)
    return digest.hexdigest()


def _open_table(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        table: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"features: cannot read {path} ({error}); run `ptmrec features` again") from error
    if table.shape != shape or table.dtype != np.float32:
        raise UserError(f"features: {path} is {table.dtype} {table.shape}, expected float32 {shape}")
    return table
