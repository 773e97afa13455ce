"""Checks of a packed data set: its files, its split, and whether there are enough shards for all readers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ptmrec_dist.config import DoctorConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.doctor.estimates import Sizes, check_sizes
from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.doctor.interactions import check_log
from ptmrec_dist.doctor.splits import check_cold_items, check_split
from ptmrec_dist.doctor.texts import check_texts
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.files import sha256

if TYPE_CHECKING:
    from ptmrec_dist.doctor.encoder import LoadedEncoder  # torch takes seconds

_IN_TIME = ("leave_one_out", "temporal", "given")
"""Splits that may predict what comes later; the others hold out at random."""


def examine_shards(folder: Path, config: DoctorConfig, encoder: "LoadedEncoder | None", report: Report) -> None:
    """Examine a packed data set.

    Args:
        folder: Packed data set.
        config: Settings of the command.
        encoder: Encoder that will read the items, if one was given.
        report: What was found is added.
    """
    where = str(folder)
    try:
        dataset = Dataset(folder)
        log = _log_of(dataset)
        contents = _contents_of(dataset)
    except (UserError, Fault) as error:
        report.add([Finding("damaged-shards", where, str(error))])
        return
    manifest = dataset.manifest
    held = f"{manifest.num_users:,} users, {manifest.num_items:,} items, {len(manifest.shards)} shards"
    report.facts.append((where, "packed data set", f"{held}, split {manifest.split}, core {manifest.core}"))
    report.add(_damaged_tars(dataset))
    report.add(_too_few(dataset, config, where))
    report.add(check_split(log, contents, manifest.split in _IN_TIME, where))
    report.add(check_cold_items(log, _cold(dataset), where))
    report.add(check_log(log, where))
    if encoder is not None:
        report.add(_for_encoder(dataset, encoder, where))
    sizes = Sizes(
        users=manifest.num_users,
        items=manifest.num_items,
        interactions=log.height,
        shard_bytes=0,
        widths=encoder.widths if encoder is not None else {},
    )
    report.add(check_sizes(sizes, config, encoder, folder, report))


def _log_of(dataset: Dataset) -> pl.DataFrame:
    """All interactions with the ids that a user knows."""
    parts = [dataset.table(part).with_columns(part=pl.lit(part)) for part in dataset.parts]
    log = pl.concat(parts, how="diagonal")
    user_ids, item_ids = pl.Series(dataset.user_ids), pl.Series(dataset.item_ids)
    return log.with_columns(user=user_ids.gather(log["user_index"]), item=item_ids.gather(log["item_index"]))


def _contents_of(dataset: Dataset) -> pl.DataFrame | None:
    if not dataset.manifest.has_content:
        return None
    return pl.DataFrame({"item": dataset.item_ids, "content": [row.tobytes() for row in dataset.item_digests]})


def _cold(dataset: Dataset) -> pl.Series:
    positions = [*dataset.cold_items("cold_validation"), *dataset.cold_items("cold_test")]
    return pl.Series([dataset.item_ids[position] for position in positions], dtype=pl.String)


def _damaged_tars(dataset: Dataset) -> Iterator[Finding]:
    damaged = []
    for shard, path in zip(dataset.manifest.shards, dataset.shard_paths(), strict=True):
        if path.stat().st_size != shard.bytes or sha256(path) != shard.sha256:
            damaged.append(shard.name)
    if damaged:
        found = f"{len(damaged)} of {len(dataset.manifest.shards)} tars are not those that were packed"
        yield Finding("damaged-shards", str(dataset.folder), found, tuple(damaged[:3]))


def _too_few(dataset: Dataset, config: DoctorConfig, where: str) -> Iterator[Finding]:
    shards, workers = len(dataset.manifest.shards), max(config.workers, 1)
    if 0 < shards < config.ranks * workers:
        found = f"{shards} tars for {config.ranks} ranks x {workers} loader processes; expected one for each or more"
        yield Finding("too-few-shards", where, found)


def _for_encoder(dataset: Dataset, encoder: "LoadedEncoder", where: str) -> Iterator[Finding]:
    yield from check_texts(dataset.texts, encoder, where)
    packed = dataset.manifest.image_size
    if packed is not None and packed < encoder.image_size:
        found = f"images were reduced to {packed} pixels, but the encoder takes {encoder.image_size}"
        yield Finding("small-images", where, found)
