"""`ptmrec add-items`: a registered model with more items, encoded by its own encoder, as a new version. Nothing is trained.

ptmrec add-items --model models:/movies@champion --items new.csv --images images
"""

import shutil
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from ptmrec_dist.config import AddItemsConfig
from ptmrec_dist.data.catalogue import drop_bad_items, read_catalogue
from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from ptmrec_dist.data.packing.item_rows import keep_readable, note_incomplete
from ptmrec_dist.data.report import Tally
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import mlflow_errors
from ptmrec_dist.progress import Progress
from ptmrec_dist.registry.loading import DIGEST_TAG, client_of_registry, pinned, verified_files
from ptmrec_dist.registry.promoting import GATE_TAG, ROLLBACK_TAG
from ptmrec_dist.registry.publishing import OWNER_TAG, publish
from ptmrec_dist.registry.registering import save_pyfunc
from ptmrec_dist.registry.versions import CANDIDATE, find_version
from ptmrec_dist.serving.digests import tree_digest
from ptmrec_dist.serving.growing import append_items

if TYPE_CHECKING:
    from PIL import Image

    from ptmrec_dist.serving import ServedModel

SOURCE_TAG, COUNT_TAG = "items_added_to", "items_added"
"""Tags of a version: the version that it extends, and by how many items."""
_BATCH = 32
_SHOW = "row {row}: item {item_id!r}"


def add_items(config: AddItemsConfig) -> None:
    """Add new items to a registered model (`ptmrec add-items`).

    Args:
        config: Settings.

    Raises:
        UserError: An unknown model, or one that takes no new items; a catalogue that cannot be read; bad rows with
            `on_error="fail"`; no new item.
    """
    version = pinned(config.model)
    with verified_files(version) as files, TemporaryDirectory(prefix="ptmrec-items-") as scratch:
        served, package = Path(scratch) / "model", Path(scratch) / "package"
        shutil.copytree(files / "artifacts" / "model", served)
        model = _loaded(served)
        items, tally = _read_items(config, model)
        vectors_ND, items = _encoded(model, items, tally, config.on_error)
        if config.on_error == "fail" and tally.faults():
            raise UserError(
                f"bad input: {'; '.join(tally.faults())}; fix it, or leave such rows out with --on_error skip"
            )
        print(tally.summary())
        if not items.height:
            raise UserError(f"items: {config.items} has no new item for {config.model}; expected one or more")
        append_items(served, items, vectors_ND)
        save_pyfunc(served, package, model.users.user_ids[0])
        made, alias = _register(config, version, package, items.height)
    name = version.removeprefix("models:/").partition("/")[0]
    print(f"registered version {made} of {name} with {items.height} more items: models:/{name}@{alias}")


def _loaded(served: Path) -> "ServedModel":
    # Takes seconds; wrong options are refused before.
    from ptmrec_dist.serving.model import READS_NO_ENCODER, ServedModel

    model = ServedModel(served)
    if model.new_items is None:
        raise UserError(f"model: it takes no new items; {READS_NO_ENCODER}")
    return model


def _read_items(config: AddItemsConfig, model: "ServedModel") -> tuple[pl.DataFrame, Tally]:
    """Rows of the catalogue that are valid in themselves and that the model does not have."""
    assert model.new_items is not None
    kept = model.attributes.columns
    catalogue = read_catalogue(config.items, config.columns, config.separator, config.header, attributes=kept)
    tally = Tally("items", catalogue.height)
    unread = {"image", "text"}.difference(model.new_items.modalities)
    catalogue = catalogue.with_columns(pl.lit("").alias(name) for name in unread)
    images = config.items.parent if config.images is None else config.images
    items = drop_bad_items(catalogue, tally, images, keep_incomplete=True)
    needed = set(model.new_items.modalities) - model.new_items.fillers.keys()
    for modality, reason in (("text", "empty text"), ("image", "no image path")):
        if modality in needed:
            items = tally.drop(items, pl.col(modality) == "", reason, show=_SHOW)
    known = pl.col("item_id").is_in(model.item_ids.implode())
    return tally.drop(items, known, "already in the model", show=_SHOW, fault=False), tally


def _encoded(model: "ServedModel", items: pl.DataFrame, tally: Tally, on_error: str) -> tuple[Tensor, pl.DataFrame]:
    """Vectors of the items that can be ranked, [N, D], and these items."""
    assert model.new_items is not None
    may_lack_image = on_error == "skip" and "image" in model.new_items.fillers
    vectors, encoded, problems = [torch.zeros(0, model.new_items.width)], [], []
    with Progress(total=items.height, desc="items", unit="item") as bar:
        for batch in items.iter_slices(_BATCH):
            images, found = _decoded(batch, "image" in model.new_items.modalities)
            stays = [not problem or (may_lack_image and text != "") for (problem, _), text in zip(found, batch["text"])]
            texts = batch.filter(stays)["text"].to_list()
            if texts:
                wanted = texts if "text" in model.new_items.modalities else []
                vectors.append(model.new_items.vectors(list(compress(images, stays)), wanted))
            problems += found
            encoded += batch.filter(stays)["row"].to_list()
            bar.update(batch.height)
    described = pl.DataFrame(problems, schema={"problem": pl.String, "detail": pl.String}, orient="row")
    items = keep_readable(items.hstack(described), tally, may_lack_image)
    note_incomplete(items, tally, model.new_items.modalities)
    kept = pl.Series(encoded, dtype=items["row"].dtype).is_in(items["row"].implode())
    return torch.cat(vectors)[kept.to_torch()], items


def _decoded(batch: pl.DataFrame, wanted: bool) -> tuple[list["Image.Image | None"], list[tuple[str, str]]]:
    """The image of each row, None where it has none that can be read, and each row's problem and detail, empty for none."""
    if not wanted:
        return [], [("", "")] * batch.height
    images: list[Image.Image | None] = []
    problems = []
    for path in batch["path"]:
        images.append(None)
        problems.append(("", ""))
        if not path:
            continue
        try:
            with decoded(path) as image:
                images[-1] = to_rgb(image)
        except BadImageError as bad:
            problems[-1] = (bad.problem, bad.detail)
    return images, problems


def _register(config: AddItemsConfig, uri: str, package: Path, count: int) -> tuple[str, str]:
    """Register the package as a version that has the tags of the one it extends; returns its number and alias."""
    name, _, number = uri.removeprefix("models:/").partition("/")
    alias = config.model.partition("@")[2] or CANDIDATE
    client = client_of_registry()
    with mlflow_errors():
        extended = find_version(client, name, number)
        own = {DIGEST_TAG: tree_digest(package), SOURCE_TAG: number, COUNT_TAG: str(count)}
        tags = {tag: value for tag, value in extended.tags.items() if tag not in (GATE_TAG, ROLLBACK_TAG, OWNER_TAG)}
        return publish(client, package, extended.run_id or None, name, alias, tags | own), alias
