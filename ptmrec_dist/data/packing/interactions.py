"""User-item interactions: read and validated.

Tables may have more rows than fit into memory: they are read in batches, ids are kept as categories, and columns are stored
in scratch space, through which every function goes in blocks.

Shape suffixes: E interactions, R those of a block, U users, I items.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import polars as pl

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.blocks import computed, slices_of
from ptmrec_dist.data.ids import respelled, without_fraction
from ptmrec_dist.data.packing.filters import SHOW, drop_rows
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.data.tables.times import Times
from ptmrec_dist.errors import UserError

_log = logging.getLogger(__name__)
_LABEL = "x_label"
_TRUTH = {"true": 1.0, "false": 0.0}
_NO_TIME = "time is neither a number nor a date such as 2017-07-14 03:59"


def read_interactions(config: PackConfig, scratch: Scratch = IN_MEMORY) -> tuple[pl.DataFrame, Tally]:
    """Read the interactions and drop the rows that are invalid in themselves or rated too low.

    Args:
        config: Settings: file, columns, split and minimum rating.
        scratch: Where columns are stored.

    Returns:
        `row` (counted from 1), `user_id` and `item_id` (categories), and where the file has them `rating` (float64),
        `timestamp` (seconds since 1970, float64) and `label` (int8); with the counts of the rows.

    Raises:
        UserError: The file cannot be read, has no rows, lacks a column that the settings need, mixes units of time, or has
            dates of which the order of day and month is unknown.
    """
    columns = config.columns
    table = Table(config.interactions, "interactions", config.separator, config.header, columns=asdict(columns))
    user, item = _present(table, columns.user, "userID"), _present(table, columns.item, "itemID")
    if user == item:
        raise UserError(f"columns.user: got {user!r}, which is columns.item too; expected two columns")
    extras = {"rating": columns.rating, "timestamp": columns.time, "label": _LABEL}
    needed = {
        "rating": config.min_rating is not None or columns.names("rating"),
        "timestamp": config.splits_in_time or columns.names("time"),
        "label": config.split == "given",
    }
    required = [user, item, *(name for extra, name in extras.items() if needed[extra])]
    extras = {extra: name for extra, name in extras.items() if name in table.columns}
    names, times = {"user_id": user, "item_id": item} | extras, Times()
    batches = (_parsed(texts, names, times, config, table) for texts in table.batches(required, extras.values()))
    rows = scratch.table(batches)
    rows = rows.with_columns(respelled(rows[name], without_fraction, scratch) for name in ("user_id", "item_id"))
    if "timestamp" in extras:
        rows = _in_seconds(rows, times, table, extras["timestamp"], scratch)
    tally = Tally("interactions", rows.height)
    rows = _drop_bad_rows(rows, tally, config, scratch)
    _warn_of_unread(rows)
    return rows.drop([f"{extra}_text" for extra in extras]), tally


def _present(table: Table, name: str, other: str) -> str:
    return other if name not in table.columns and other in table.columns else name


def _parsed(
    texts: pl.DataFrame, names: Mapping[str, str], times: Times, config: PackConfig, table: Table
) -> pl.DataFrame:
    """Read the values of a batch, and keep the text of those that may be shown to the user."""
    rows = texts.select("row", **{name: pl.col(names[name]).cast(pl.Categorical) for name in ("user_id", "item_id")})
    lowest = -np.inf if config.min_rating is None else config.min_rating
    for extra in ("rating", "timestamp", "label"):
        if extra not in names:
            continue
        column = texts[names[extra]]
        if extra == "timestamp":
            values = times.read(column).rename({"time": extra})
        else:
            values = _numbers(column, extra, table.format.separator).to_frame(extra)
        odd = values[extra].is_null() | (values[extra] < lowest if extra == "rating" else False)
        shown = pl.select(pl.when(odd).then(column)).to_series().cast(pl.Categorical)
        rows = rows.hstack(values.with_columns(shown.alias(f"{extra}_text")))
    return rows


def _numbers(texts: pl.Series, extra: str, separator: str) -> pl.Series:
    if separator == ";":  # spreadsheets write it where the comma is the decimal separator
        texts = texts.str.replace(r"^([+-]?\d+),(\d+)$", "$1.$2")
    numbers = texts.cast(pl.Float64, strict=False)
    if extra == "rating" and numbers.has_nulls():
        numbers = numbers.fill_null(
            texts.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Float64)
        )
    readable = numbers.is_in([0.0, 1.0, 2.0]) if extra == "label" else numbers.is_finite()
    numbers = pl.select(pl.when(readable).then(numbers)).to_series()
    return numbers.cast(pl.Int8) if extra == "label" else numbers


def _in_seconds(rows: pl.DataFrame, times: Times, table: Table, column: str, scratch: Scratch) -> pl.DataFrame:
    read = rows.select("dated", "swap", time="timestamp")
    try:
        seconds = scratch.table(times.seconds(read[block]).to_frame() for block in slices_of(rows.height))
    except ValueError as error:
        raise UserError(f"interactions: {table.path}: column {column!r} {error}") from error
    return rows.drop("dated", "swap").with_columns(seconds.to_series().alias("timestamp"))


def _drop_bad_rows(rows: pl.DataFrame, tally: Tally, config: PackConfig, scratch: Scratch) -> pl.DataFrame:
    def drop(rows: pl.DataFrame, bad: pl.Expr, reason: str, show: str = SHOW, fault: bool = True) -> pl.DataFrame:
        bad_E = computed(lambda block: rows[block].select(bad=bad)["bad"].to_numpy(), rows.height, bool, scratch)
        return drop_rows(rows, bad_E, tally, reason, show=show, fault=fault, scratch=scratch)

    rows = drop(rows, pl.col("user_id") == "", "empty user id")
    rows = drop(rows, pl.col("item_id") == "", "empty item id")
    if config.min_rating is not None:
        show = SHOW + ", rating {rating_text!r}"
        rows = drop(rows, pl.col("rating").is_null(), "rating is not a number", show)
        rows = drop(
            rows, pl.col("rating") < config.min_rating, f"rating below {config.min_rating:g}", show, fault=False
        )
    if config.splits_in_time:
        rows = drop(rows, pl.col("timestamp").is_null(), _NO_TIME, SHOW + ", time {timestamp_text!r}")
    if config.split == "given":
        reason = f"{_LABEL} is not 0, 1 or 2"
        rows = drop(rows, pl.col("label").is_null(), reason, SHOW + ", " + _LABEL + " {label_text!r}")
    return rows


def _warn_of_unread(rows: pl.DataFrame) -> None:
    """Warn of unreadable ratings and times that the settings do not need: they are packed empty."""
    for extra in ("rating", "timestamp"):
        if extra not in rows.columns or not rows[extra].has_nulls():
            continue
        values, count, first = rows.select("row", value=extra, text=f"{extra}_text"), 0, rows.clear()
        for block in slices_of(rows.height):
            unread = values[block].filter(pl.col("value").is_null() & (pl.col("text") != ""))
            first, count = unread.head(1) if not count else first, count + unread.height
        if count:
            _log.warning(
                "interactions: %d of %d values of %s cannot be read and are packed empty; the first is %r in row %d",
                count,
                rows.height,
                extra,
                first["text"][0],
                first["row"][0],
            )
