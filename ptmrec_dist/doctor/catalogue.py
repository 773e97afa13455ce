"""Checks of a catalogue and its interactions, as `ptmrec pack` would read them; nothing is written.

The tables are read as pack reads them: the columns it needs, in memory. Images are decoded one at a time.
"""

import hashlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ptmrec_dist.config import DoctorConfig, PackConfig
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.data.packing.filters import drop_unknown_items
from ptmrec_dist.data.packing.images import Limits
from ptmrec_dist.data.packing.item_rows import READABLE, keep_readable
from ptmrec_dist.data.packing.pack import read_tables
from ptmrec_dist.data.report import Dropped, Tally
from ptmrec_dist.data.report import Report as Counts
from ptmrec_dist.doctor.estimates import Sizes, check_sizes, packed_bytes
from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.doctor.images import check_images, check_readable, look_at
from ptmrec_dist.doctor.interactions import check_core, check_log, check_missing_times, check_repeats
from ptmrec_dist.doctor.kinds import Severity
from ptmrec_dist.doctor.missing_words import check_words_of_texts
from ptmrec_dist.doctor.splits import check_split
from ptmrec_dist.doctor.texts import check_texts
from ptmrec_dist.errors import UserError

if TYPE_CHECKING:
    from ptmrec_dist.doctor.encoder import LoadedEncoder  # torch takes seconds


_KIND_OF = {
    "duplicate item id": "duplicate-ids",
    "empty text": "missing-content",
    "no image path": "missing-content",
    "image is a URL": "images-are-urls",
    "image path outside the image folder": "images-outside",
    "unknown item": "unknown-items",
}
"""Reason for which pack leaves a row out, to the kind of finding; the others are bad rows."""


def examine_tables(config: DoctorConfig, packing: PackConfig, encoder: "LoadedEncoder | None", report: Report) -> None:
    """Examine a catalogue with its images and interactions, or interactions alone.

    Args:
        config: Settings of the command.
        packing: Settings with which pack would read the tables.
        encoder: Encoder that will read the items, if one was given.
        report: What was found is added.
    """
    where = str(packing.interactions)
    try:
        items, rows, counts = read_tables(packing)
    except UserError as error:
        report.add([Finding("unreadable-table", where, str(error))])
        return
    looked, problems = items, frozenset[str]()
    if packing.items is not None:
        looked = _with_looks(items, packing)
        problems = frozenset(looked["problem"])
        items, rows = _as_packed(looked, rows, counts, packing)
    for tally, table in ((counts.items, packing.items), (counts.interactions, packing.interactions)):
        report.facts.append((str(table or where), tally.name, tally.counts()))
        report.add(_left_out(tally, str(table or where), problems))
    log = rows.rename({"user_id": "user", "item_id": "item"})
    if packing.items is not None:
        report.add(check_readable(looked.filter(pl.col("path") != ""), str(packing.items)))
        report.add(_content(items, encoder, str(packing.items)))
    report.add(_interactions(log, packing, items, where))
    report.add(_estimates(config, packing, items, log, encoder, report))


def _as_packed(
    looked: pl.DataFrame, rows: pl.DataFrame, counts: Counts, packing: PackConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The items that pack keeps, and their interactions; where no image can be read, all: the folder of images is wrong."""
    items = keep_readable(looked, counts.items, packing.keeps_unreadable)
    if items.is_empty():
        return looked.filter(pl.col("item_id").is_first_distinct()), rows
    left = drop_unknown_items(rows, counts.interactions, items["item_id"], "item was left out", fault=False)
    return items, left


def _left_out(tally: Tally, where: str, problems: Container[str]) -> Iterator[Finding]:
    """Rows that are bad in themselves; problems of images are found by `check_readable`."""
    for dropped in tally.dropped:
        if dropped.fault and dropped.reason not in problems:
            kind = (
                "unreadable-times" if dropped.reason.startswith("time is") else _KIND_OF.get(dropped.reason, "bad-rows")
            )
            found = f"{dropped.count:,} of {tally.read:,} {tally.name}: {dropped.reason}"
            examples = (*dropped.examples, *([dropped.hint] if dropped.hint else []))
            yield Finding(kind, where, found, examples, _worse_if_all(dropped, tally))


def _worse_if_all(dropped: Dropped, tally: Tally) -> Severity | None:
    return Severity.ERROR if dropped.count == tally.read else None


def _with_looks(items: pl.DataFrame, packing: PackConfig) -> pl.DataFrame:
    with_image = items.filter(pl.col("path") != "")
    limits = Limits(packing.image_size, packing.max_image_pixels, packing.max_aspect_ratio)
    looks = look_at(with_image["path"].to_list(), limits, None)
    looked = items.join(with_image.select("row").hstack(looks), on="row", how="left", maintain_order="left")
    return looked.with_columns(pl.col("problem", "detail").fill_null(""))


def _content(items: pl.DataFrame, encoder: "LoadedEncoder | None", where: str) -> Iterator[Finding]:
    yield from check_words_of_texts(items, where)
    pixels = encoder.image_size if encoder is not None else 0
    yield from check_images(items.filter(READABLE), pixels, where)
    if encoder is not None:
        yield from check_texts(items["text"].to_list(), encoder, where)


def _interactions(log: pl.DataFrame, packing: PackConfig, items: pl.DataFrame, where: str) -> Iterator[Finding]:
    if not log.height:
        return
    yield from check_repeats(log, where)
    if packing.core:
        yield from check_core(log, packing.core, where)
    yield from check_log(log, where)
    yield from check_missing_times(log, where)
    if "label" in log.columns:
        labelled = log.filter(pl.col("label").is_not_null())
        parts = labelled.with_columns(part=pl.Series(PARTS).gather(labelled["label"].cast(pl.UInt32)))
        contents = _contents(items) if "digest" in items.columns else None
        yield from check_split(parts, contents, in_time=True, where=where)


def _contents(items: pl.DataFrame) -> pl.DataFrame:
    """Equal digests for items with the same image and text; items without either are left out."""
    described = items.filter((pl.col("digest").fill_null("") != "") | (pl.col("text") != ""))
    pairs = described.select(pl.col("digest").fill_null(""), "text").rows()
    digests = [hashlib.sha256(f"{image}{text}".encode()).hexdigest() for image, text in pairs]
    return described.select(item=pl.col("item_id").cast(pl.Categorical), content=pl.Series(digests, dtype=pl.String))


def _estimates(
    config: DoctorConfig,
    packing: PackConfig,
    items: pl.DataFrame,
    log: pl.DataFrame,
    encoder: "LoadedEncoder | None",
    report: Report,
) -> Iterator[Finding]:
    described = packing.items is not None
    paths = items.filter(READABLE)["path"].to_list() if described else []
    texts = int(items["text"].str.len_bytes().sum()) if described else 0
    sizes = Sizes(
        users=log["user"].n_unique(),
        items=items.height,
        interactions=log.height,
        shard_bytes=texts + packed_bytes(paths, packing),
        widths=encoder.widths if encoder is not None else {},
    )
    yield from check_sizes(sizes, config, encoder, Path(packing.interactions).parent, report)
