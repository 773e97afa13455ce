"""`ptmrec pack`: from a catalogue and its interactions to a packed data set, or to a one-line error.

Everything is validated before it is written: first the tables, then the images, then what is left of both.

Shape suffixes: I items.
"""

import shutil
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

import numpy as np
import polars as pl

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.blocks import counts_of, slices_of
from ptmrec_dist.data.catalogue import catalogue_of_ids, drop_bad_items, read_catalogue
from ptmrec_dist.data.ids import as_enum, known_to, numbers_of, range_of, sort_ids
from ptmrec_dist.data.manifest import PARTS, SCHEMA_VERSION, Manifest, Shard, item_digest
from ptmrec_dist.data.packing import splits
from ptmrec_dist.data.packing.filters import SHOW, drop_repeats, drop_rows, drop_unknown_items, keep_core, match_items
from ptmrec_dist.data.packing.images import NO_IMAGE, Limits, Prepared, prepare_images, start_worker
from ptmrec_dist.data.packing.interactions import read_interactions
from ptmrec_dist.data.packing.item_rows import keep_readable, note_incomplete
from ptmrec_dist.data.packing.packed_tables import write_tables
from ptmrec_dist.data.packing.shards import Sample, divide, sample_bytes, write_shards
from ptmrec_dist.data.packing.staging import check_replaceable
from ptmrec_dist.data.packing.time_order import parts_in_order
from ptmrec_dist.data.packing.workers import Pool, RankPool, open_workers
from ptmrec_dist.data.report import Report, Tally
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
from ptmrec_dist.errors import UserError, fault_of
from ptmrec_dist.files import staged
from ptmrec_dist.lock import exclusive_out

_LIST_LENGTH = 20
"""Length of the lists on which models are compared."""


@dataclass
class Tables:
    """What is left of a catalogue and its interactions; each step replaces what it changes, so that nothing is stored twice."""

    items: pl.DataFrame
    rows: pl.DataFrame
    """The interactions."""
    report: Report
    """Counts of what was read and dropped."""
    scratch: Scratch
    """Where the interactions are stored."""


@exclusive_out
def pack(config: PackConfig) -> None:
    """Validate, filter and split a catalogue and its interactions, and write them as a packed data set.

    Collective: every rank must call this. The first filters and writes the tables; all decode images and write shards.

    Args:
        config: Settings.

    Raises:
        UserError: Input that cannot be used, bad rows with `on_error="fail"`, nothing left, or an `out` that holds
            something else.
        Fault: A rank was lost, or the disk does not take the files.
    """
    with open_workers(config.workers, config.timeout, start_worker, config.max_image_pixels) as pool:
        if isinstance(pool, RankPool) and pool.serves:
            pool.serve()
        else:
            _pack(config, pool)


def _pack(config: PackConfig, pool: Pool) -> None:
    out = config.out.resolve()
    check_replaceable(out)
    try:
        with staged(out) as fresh:
            manifest, items, report = _write(config, pool, fresh)
    except OSError as error:
        raise fault_of(error, f"packing into {out}") from error
    _print_result(out, manifest, items, report)


def _write(config: PackConfig, pool: Pool, folder: Path) -> tuple[Manifest, pl.DataFrame, Report]:
    """Write tars, tables and manifest."""
    spool, scratch = folder / "spool", Scratch(folder)
    spool.mkdir()
    tables = Tables(*read_tables(config, scratch), scratch)
    report = tables.report
    _check_report(report, config)
    modalities: tuple[str, ...] = ()
    if config.items is not None:
        _read_images(tables, pool, spool, config)
    _keep_core(tables, config)
    _split(tables, config)
    if config.items is not None:
        tables.items, modalities = _mark_absent(tables.items, report)
    tables.items, shards = _write_shards(tables.items, pool, folder, spool, config)
    shutil.rmtree(spool)
    user_ids = known_to(tables.rows["user_id"])
    parts = parts_in_order(tables.rows, config.split == "leave_one_out", scratch)
    fingerprint, files = write_tables(tables.items, user_ids, parts, folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=fingerprint,
        split=config.split,
        seed=config.seed,
        core=config.core,
        num_users=len(user_ids),
        num_items=tables.items.height,
        modalities=modalities,
        image_size=config.image_size if "image" in modalities else None,
        interactions={part: table.height for part, table in parts.items()},
        shards=tuple(shards),
        files=files,
        report=report.to_dict(),
    )
    manifest.write(folder)
    return manifest, tables.items, report


def _print_result(out: Path, manifest: Manifest, items: pl.DataFrame, report: Report) -> None:
    report.print()
    counts = ", ".join(f"{count:,} {part}" for part, count in manifest.interactions.items())
    counts += "".join(f", none for {part}" for part in PARTS[:3] if part not in manifest.interactions)
    held = f"{manifest.num_users:,} users, {manifest.num_items:,} items{_named(manifest.modalities)}"
    print(f"{out}: {held}, {len(manifest.shards)} shards; {counts}")
    if report.items.has_dropped("empty text", "no image path"):
        print("items that lack image or text were left out; --missing keep keeps them and their interactions")
    _report_short_rankings(manifest, items)


def _report_short_rankings(manifest: Manifest, items: pl.DataFrame) -> None:
    """Name the parts where all models and epochs are equal, because every list has all items."""
    for parts, ranked in ((PARTS[1:3], "train"), *(((part,), part) for part in PARTS[3:])):
        measured = [part for part in parts if part in manifest.interactions]
        count = items["part"].eq(ranked).sum()
        if measured and count <= _LIST_LENGTH:
            print(
                f"{' and '.join(measured)}: all items that are ranked ({count}) are in any list of {_LIST_LENGTH}, so that "
                f"recall@{_LIST_LENGTH} is always 1 and selects nothing"
            )


def read_tables(config: PackConfig, scratch: Scratch = IN_MEMORY) -> tuple[pl.DataFrame, pl.DataFrame, Report]:
    """Read a catalogue and its interactions, and leave out the rows that are invalid in themselves.

    Args:
        config: Settings.
        scratch: Where the interactions are stored.

    Returns:
        The items with the paths of their images, their interactions, and the counts of both tables.

    Raises:
        UserError: A file or a folder that cannot be read.
    """
    rows, row_tally = read_interactions(config, scratch)
    if config.items is None:
        if config.split == "cold_items":
            raise UserError(
                "split: got cold_items without --items, but unseen items are only described by image and text"
            )
        items = catalogue_of_ids(sort_ids(rows["item_id"]))
        report = Report(Tally("items", items.height), row_tally)
        report.items.ids = range_of(items["item_id"])
    else:
        images = config.images or config.items.parent
        if not images.is_dir():
            raise UserError(
                f"images: got {images}, expected the folder that the catalogue's image paths are relative to"
            )
        separator = config.items_separator or config.separator
        header = config.header if config.items_header is None else config.items_header
        columns = config.columns
        catalogue = read_catalogue(config.items, columns, separator, header, "--items_", columns.attributes)
        report = Report(Tally("items", catalogue.height), row_tally)
        report.items.ids = range_of(catalogue["item_id"])
        rows = match_items(rows, catalogue["item_id"], scratch)
        rows = drop_unknown_items(rows, row_tally, catalogue["item_id"], "unknown item", fault=True, scratch=scratch)
        items = drop_bad_items(catalogue, report.items, images, config.missing == "keep")
    return items, rows, report


def _check_report(report: Report, config: PackConfig) -> None:
    if config.on_error == "fail":
        report.stop_on_faults()
    report.stop_if_nothing_left()


def _read_images(tables: Tables, pool: Pool, spool: Path, config: PackConfig) -> None:
    items, report = tables.items, tables.report
    limits = Limits(config.image_size, config.max_image_pixels, config.max_aspect_ratio)
    prepared = iter(prepare_images(pool, [path for path in items["path"] if path], spool, limits))
    rows_I = [next(prepared) if path else NO_IMAGE for path in items["path"]]
    items = items.hstack(pl.DataFrame(rows_I, schema=list(Prepared._fields), orient="row"))
    items = keep_readable(items, report.items, config.keeps_unreadable)
    _check_report(report, config)
    tables.items = items
    tally, reason = report.interactions, "item was left out"
    tables.rows = drop_unknown_items(tables.rows, tally, items["item_id"], reason, fault=False, scratch=tables.scratch)


def _mark_absent(items: pl.DataFrame, report: Report) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return the modalities of the items, and record which items lack one of them."""
    has = items.select(image=pl.col("size") > 0, text=pl.col("text") != "")
    modalities = tuple(name for name in has.columns if has[name].any())
    items = items.with_columns(has[name].alias(f"has_{name}") for name in modalities if not has[name].all())
    note_incomplete(items, report.items, modalities)
    return items, modalities


def _keep_core(tables: Tables, config: PackConfig) -> None:
    items, report, scratch = tables.items, tables.report, tables.scratch
    _number(tables, sort_ids(tables.rows["user_id"]), items["item_id"])
    if config.repeats == "drop":
        tables.rows = drop_repeats(tables.rows, report.interactions, scratch)
    tables.rows = keep_core(tables.rows, report.interactions, config.core, scratch)
    rare_I = counts_of(numbers_of(tables.rows["item_id"]), items.height) < config.core
    show, reason = "item {item_id!r}", f"fewer than {config.core} interactions"
    tables.items = report.items.drop(items, pl.Series(rare_I), reason, show=show, fault=False)
    report.stop_if_nothing_left()


def _split(tables: Tables, config: PackConfig) -> None:
    items, report, scratch = tables.items, tables.report, tables.scratch
    cold = config.split == "cold_items"
    if cold and items.height < 3:
        raise UserError(
            f"split: got cold_items for {items.height} items, expected 3 or more; pack more items or use another split"
        )
    known = known_to(tables.rows["user_id"])
    _number(tables, known, items["item_id"])
    labels_I = splits.sample_cold_items(items.height, config.seed) if cold else np.zeros(items.height, dtype=np.int8)
    tables.items = items.with_columns(part=pl.Series(PARTS).gather(labels_I), shard=pl.lit(-1, dtype=pl.Int64))
    labels_E = _labels(tables, labels_I, config)
    tables.rows = tables.rows.with_columns(part=pl.Series(labels_E.view(np.uint8)).cat.to(pl.Enum(PARTS)))
    untrained_E = splits.without_training(numbers_of(tables.rows["user_id"]), labels_E, scratch)
    tables.rows = drop_rows(
        tables.rows, untrained_E, report.interactions, "user without training rows", fault=False, scratch=scratch
    )
    report.stop_if_nothing_left()
    left_U = counts_of(numbers_of(tables.rows["user_id"]), len(known)) > 0
    _number(tables, known.filter(pl.Series(left_U)), tables.items["item_id"])
    _note_untrained(tables)


def _note_untrained(tables: Tables) -> None:
    """Count the items that have no training rows although they are not cold, and the interactions with them: both are kept."""
    rows, report = tables.rows, tables.report
    items_E, labels_E = numbers_of(rows["item_id"]), numbers_of(rows["part"])
    untrained_I = ~splits.trained(items_E, labels_E, tables.items.height)
    untrained_I &= tables.items["part"].eq(PARTS[splits.TRAIN]).to_numpy()
    report.items.note_incomplete(tables.items.filter(untrained_I), "no training rows", show="item {item_id!r}")
    for block in slices_of(rows.height):
        with_untrained = rows[block].filter(untrained_I[items_E[block]])
        report.interactions.note_incomplete(with_untrained, "item without training rows", show=SHOW)


def _number(tables: Tables, users: pl.Series, items: pl.Series) -> None:
    """Number the ids of all interactions by their positions in these lists."""
    for name, known in (("user_id", users), ("item_id", items)):
        tables.rows = tables.rows.with_columns(as_enum(tables.rows[name], known, tables.scratch))


def _labels(tables: Tables, labels_I: np.ndarray, config: PackConfig) -> np.ndarray:
    """The part of each interaction, as an index into `PARTS`."""
    rows, scratch = tables.rows, tables.scratch
    users_E, items_E = numbers_of(rows["user_id"]), numbers_of(rows["item_id"])
    if config.split == "given":
        return rows["label"].to_numpy()
    if config.split == "leave_one_out":
        return splits.split_leave_one_out(users_E, items_E, rows["timestamp"].to_numpy(), scratch)
    if config.split == "temporal":
        return splits.split_temporal(rows["timestamp"].to_numpy(), scratch)
    return splits.split_cold_items(users_E, items_E, labels_I, config.seed, scratch)


def _write_shards(
    items: pl.DataFrame, pool: Pool, folder: Path, spool: Path, config: PackConfig
) -> tuple[pl.DataFrame, list[Shard]]:
    if config.items is None:
        return items.with_columns(sha256=pl.lit("")), []
    if config.num_shards is not None and config.num_shards > items.height:
        raise UserError(
            f"num_shards: got {config.num_shards}, but {items.height} items are left; expected at most that many"
        )
    lengths = items.select("size", text=pl.col("text").str.len_bytes(), item_id=pl.col("item_id").str.len_bytes())
    sizes_I = sample_bytes(*lengths.cast(pl.Int64).to_numpy().T)
    divided = divide(sizes_I, config.shard_bytes, config.num_shards, config.seed)
    samples = items.with_row_index("item_index").select(Sample._fields)
    shards = write_shards(pool, folder, spool, [list(starmap(Sample, samples[chosen].rows())) for chosen in divided])
    shard_I = np.empty(items.height, dtype=np.int64)
    for number, chosen in enumerate(divided):
        shard_I[chosen] = number
    digests = starmap(item_digest, ((image, text.encode()) for image, text in items.select("sha256", "text").rows()))
    return items.with_columns(shard=pl.Series(shard_I), sha256=pl.Series(list(digests))), shards


def _named(modalities: tuple[str, ...]) -> str:
    return f" with {modalities[0]} alone" if len(modalities) == 1 else ""
