"""User-item interactions: read, validated, and filtered to the k-core.

Shape suffixes: E interactions.
"""

import logging

import numpy as np
import polars as pl

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.ids import spelled_as, without_fraction
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables import Table
from ptmrec_dist.data.times import seconds_of
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
        `row` (counted from 1), `user_id`, `item_id`, and where the file has them `rating` (float64), `timestamp` (seconds
        since 1970, float64) and `label` (int8); with the counts of the rows.

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
    texts = table.read(required, optional=extras.values())
    ids = {"user_id": without_fraction(texts[user]), "item_id": without_fraction(texts[item])}
    extras = {extra: name for extra, name in extras.items() if name in texts.columns}
    rows = texts.select("row", **ids, **{f"{extra}_text": pl.col(name) for extra, name in extras.items()})
    rows = rows.with_columns(_parsed(table, texts[name], extra) for extra, name in extras.items())
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
    spelled = spelled_as(rows["item_id"], item_ids)
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
        rows: Interactions with `user_index` and `item_index`.
        tally: Counts of the interactions.

    Returns:
        The interactions, each pair once.
    """
    return tally.drop(rows, ~_earliest(rows), "repeated user and item", show=_SHOW, fault=False)


def keep_core(rows: pl.DataFrame, tally: Tally, core: int) -> pl.DataFrame:
    """Drop users and items with too few interactions, repeatedly, until none is left.

    Args:
        rows: Interactions with `user_index` and `item_index`.
        tally: Counts of the interactions.
        core: Fewest interactions of a user and of an item; 0 keeps all.

    Returns:
        The interactions of the k-core.
    """
    users_E, items_E = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
    kept_E = np.ones(rows.height, dtype=bool)
    while True:
        frequent_users = np.bincount(users_E[kept_E], minlength=users_E.max(initial=-1) + 1) >= core
        frequent_items = np.bincount(items_E[kept_E], minlength=items_E.max(initial=-1) + 1) >= core
        stable_E = kept_E & frequent_users[users_E] & frequent_items[items_E]
        if np.array_equal(stable_E, kept_E):
            break
        kept_E = stable_E
    reason = f"user or item with fewer than {core} interactions"
    return tally.drop(rows, pl.Series(~kept_E), reason, show=_SHOW, fault=False)


def _earliest(rows: pl.DataFrame) -> pl.Series:
    """Which rows are the earliest of their user and item."""
    pairs = rows.select("user_index", "item_index", *rows.select(pl.col("^timestamp$")).columns).with_row_index(
        "position"
    )
    if "timestamp" in pairs.columns:
        pairs = pairs.sort("timestamp", nulls_last=True, maintain_order=True)
    first = pairs.unique(["user_index", "item_index"], keep="first")["position"]
    return pl.Series(np.bincount(first, minlength=rows.height) > 0)


def _present(table: Table, name: str, other: str) -> str:
    return other if name not in table.columns and other in table.columns else name


def _parsed(table: Table, texts: pl.Series, extra: str) -> pl.Series:
    if extra == "timestamp":
        try:
            return seconds_of(texts).rename(extra)
        except ValueError as error:
            raise UserError(f"interactions: {table.path}: column {texts.name!r} {error}") from error
    if table.format.separator == ";":  # spreadsheets write it where the comma is the decimal separator
        texts = texts.str.replace(r"^([+-]?\d+),(\d+)$", "$1.$2")
    numbers = texts.cast(pl.Float64, strict=False)
    readable = numbers.is_in([0.0, 1.0, 2.0]) if extra == "label" else numbers.is_finite()
    numbers = pl.select(pl.when(readable).then(numbers)).to_series().rename(extra)
    return numbers.cast(pl.Int8) if extra == "label" else numbers


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
