"""User-item interactions: read, validated, and filtered to the k-core.

Tables may have more rows than fit into memory as text: they are read in batches, and ids are kept as categories.

Shape suffixes: E interactions, R those of a block, U users, I items.
"""

import logging
from collections.abc import Mapping

import numpy as np
import polars as pl

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.blocks import blocks_of_users, counts_of, slices_of
from ptmrec_dist.data.ids import known_to, numbers_of, respelled, spelled_as, without_fraction
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables import Table
from ptmrec_dist.data.times import Times
from ptmrec_dist.errors import UserError

_log = logging.getLogger(__name__)
_LABEL = "x_label"
_SHOW = "row {row}: user {user_id!r}, item {item_id!r}"
_NO_TIME = "time is neither a number nor a date such as 2017-07-14 03:59"


def read_interactions(config: PackConfig) -> tuple[pl.DataFrame, Tally]:
    """Read the interactions and drop the rows that are invalid in themselves or rated too low.

    Args:
        config: Settings: file, columns, split and minimum rating.

    Returns:
        `row` (counted from 1), `user_id` and `item_id` (categories), and where the file has them `rating` (float64),
        `timestamp` (seconds since 1970, float64) and `label` (int8); with the counts of the rows.

    Raises:
        UserError: The file cannot be read, has no rows, lacks a column that the settings need, or mixes units of time.
    """
    table = Table(config.interactions, "interactions", config.separator, config.header)
    columns = config.columns
    user, item = _present(table, columns.user, "userID"), _present(table, columns.item, "itemID")
    if user == item:
        raise UserError(f"columns.user: got {user!r}, which is columns.item too; expected two columns")
    extras = {"rating": columns.rating, "timestamp": columns.time, "label": _LABEL}
    needed = {
        "rating": config.min_rating is not None or columns.names("rating"),
        "timestamp": config.split == "leave_one_out" or columns.names("time"),
        "label": config.split == "given",
    }
    required = [user, item, *(name for extra, name in extras.items() if needed[extra])]
    extras = {extra: name for extra, name in extras.items() if name in table.columns}
    names, times = {"user_id": user, "item_id": item} | extras, Times()
    batches = (_parsed(texts, names, times, config, table) for texts in table.batches(required, extras.values()))
    rows = pl.concat(list(batches))
    rows = rows.with_columns(respelled(rows[name], without_fraction) for name in ("user_id", "item_id"))
    if "timestamp" in extras:
        rows = _in_seconds(rows, times, table, extras["timestamp"])
    tally = Tally("interactions", rows.height)
    rows = _drop_bad_rows(rows, tally, config)
    _warn_of_unread(rows)
    return rows.drop([f"{extra}_text" for extra in extras]), tally


def match_items(rows: pl.DataFrame, item_ids: pl.Series) -> pl.DataFrame:
    """Spell item ids as the catalogue does where they differ by leading zeros or `.0` alone, and log it.

    Args:
        rows: Interactions.
        item_ids: Item ids of the catalogue.

    Returns:
        The interactions, with item ids of the catalogue where the match is unambiguous.
    """
    spelled = respelled(rows["item_id"], lambda ids: spelled_as(ids, item_ids))
    changed = rows.select("item_id", spelled=spelled).filter(pl.col("item_id") != spelled).unique(maintain_order=True)
    if changed.height:
        theirs, ours = changed.row(0)
        _log.warning(
            "interactions: %d item ids differ from the catalogue's only by leading zeros or .0 and are matched: %r to %r",
            changed.height,
            theirs,
            ours,
        )
    return rows.with_columns(item_id=spelled)


def drop_unknown_items(
    rows: pl.DataFrame, tally: Tally, item_ids: pl.Series, reason: str, *, fault: bool
) -> pl.DataFrame:
    """Drop interactions with items that are not in a list.

    Args:
        rows: Interactions.
        tally: Counts of the interactions.
        item_ids: Distinct known item ids.
        reason: Reason to record for the dropped rows.
        fault: Whether unknown items are mistakes in the input.

    Returns:
        The other interactions.
    """
    unknown = ~pl.col("item_id").is_in(item_ids.implode())
    hint = f"the catalogue has {', '.join(map(repr, item_ids.head(2)))}" if fault else ""
    return tally.drop(rows, unknown, reason, show=_SHOW, fault=fault, hint=hint)


def drop_repeats(rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Drop repeated pairs: the earliest row stays; without times, or at the same time, the first of the file.

    Args:
        rows: Interactions, with ids of `Enum` types.
        tally: Counts of the interactions.

    Returns:
        The interactions, each pair once.
    """
    users_E = numbers_of(rows["user_id"])
    repeated_E = np.ones(rows.height, dtype=bool)
    for rows_R in blocks_of_users(users_E, counts_of(users_E, len(known_to(rows["user_id"])))):
        repeated_E[rows_R[_earliest(rows, rows_R)]] = False
    return tally.drop(rows, pl.Series(repeated_E), "repeated user and item", show=_SHOW, fault=False)


def keep_core(rows: pl.DataFrame, tally: Tally, core: int) -> pl.DataFrame:
    """Drop users and items with too few interactions, repeatedly, until none is left.

    Args:
        rows: Interactions, with ids of `Enum` types.
        tally: Counts of the interactions.
        core: Fewest interactions of a user and of an item; 0 keeps all.

    Returns:
        The interactions of the k-core.
    """
    users_E, items_E = numbers_of(rows["user_id"]), numbers_of(rows["item_id"])
    stay_U, stay_I = (np.ones(len(known_to(rows[name])), dtype=bool) for name in ("user_id", "item_id"))
    while True:
        counts_U, counts_I = np.zeros(len(stay_U), dtype=np.int64), np.zeros(len(stay_I), dtype=np.int64)
        for block in slices_of(rows.height, len(stay_U) + len(stay_I)):
            users_R, items_R = users_E[block], items_E[block]
            kept_R = stay_U[users_R] & stay_I[items_R]
            counts_U += np.bincount(users_R[kept_R], minlength=len(stay_U))
            counts_I += np.bincount(items_R[kept_R], minlength=len(stay_I))
        frequent_U, frequent_I = counts_U >= core, counts_I >= core
        if np.array_equal(frequent_U, stay_U) and np.array_equal(frequent_I, stay_I):
            break
        stay_U, stay_I = frequent_U, frequent_I
    reason = f"user or item with fewer than {core} interactions"
    return tally.drop(rows, pl.Series(~(stay_U[users_E] & stay_I[items_E])), reason, show=_SHOW, fault=False)


def _earliest(rows: pl.DataFrame, rows_R: np.ndarray) -> np.ndarray:
    """Which of some rows are the earliest of their user and item, as positions among them."""
    pairs = rows.select("user_id", "item_id", "^timestamp$")[rows_R].with_row_index("position")
    if "timestamp" in pairs.columns:
        pairs = pairs.sort("timestamp", nulls_last=True, maintain_order=True)
    return pairs.unique(["user_id", "item_id"], keep="first")["position"].to_numpy()


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
    readable = numbers.is_in([0.0, 1.0, 2.0]) if extra == "label" else numbers.is_finite()
    numbers = pl.select(pl.when(readable).then(numbers)).to_series()
    return numbers.cast(pl.Int8) if extra == "label" else numbers


def _in_seconds(rows: pl.DataFrame, times: Times, table: Table, column: str) -> pl.DataFrame:
    try:
        seconds = times.seconds(rows.select("dated", time="timestamp"))
    except ValueError as error:
        raise UserError(f"interactions: {table.path}: column {column!r} {error}") from error
    return rows.drop("dated").with_columns(seconds.alias("timestamp"))


def _drop_bad_rows(rows: pl.DataFrame, tally: Tally, config: PackConfig) -> pl.DataFrame:
    rows = tally.drop(rows, pl.col("user_id") == "", "empty user id", show=_SHOW)
    rows = tally.drop(rows, pl.col("item_id") == "", "empty item id", show=_SHOW)
    if config.min_rating is not None:
        show = _SHOW + ", rating {rating_text!r}"
        rows = tally.drop(rows, pl.col("rating").is_null(), "rating is not a number", show=show)
        low = pl.col("rating") < config.min_rating
        rows = tally.drop(rows, low, f"rating below {config.min_rating:g}", show=show, fault=False)
    if config.split == "leave_one_out":
        rows = tally.drop(rows, pl.col("timestamp").is_null(), _NO_TIME, show=_SHOW + ", time {timestamp_text!r}")
    if config.split == "given":
        bad = pl.col("label").is_null()
        rows = tally.drop(rows, bad, f"{_LABEL} is not 0, 1 or 2", show=_SHOW + ", " + _LABEL + " {label_text!r}")
    return rows


def _warn_of_unread(rows: pl.DataFrame) -> None:
    """Warn of unreadable ratings and times that the settings do not need: they are packed empty."""
    for extra in ("rating", "timestamp"):
        if extra not in rows.columns:
            continue
        unread = rows.filter(pl.col(extra).is_null() & (pl.col(f"{extra}_text") != ""))
        if unread.height:
            row, text = unread.row(0, named=True)["row"], unread[f"{extra}_text"][0]
            _log.warning(
                "interactions: %d of %d values of %s cannot be read and are packed empty; the first is %r in row %d",
                unread.height,
                rows.height,
                extra,
                text,
                row,
            )
