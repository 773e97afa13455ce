"""Interactions: who took what. Reads them, leaves out what is bad or too rare, and numbers users and items.

Shape suffixes: E interactions.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables import Table

_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".inter")
_LABEL = "x_label"
_SHOW = "row {row}: user {user_id!r}, item {item_id!r}"


def read_interactions(config: PackConfig) -> tuple[pl.DataFrame, Tally]:
    """Read the interactions and leave out the rows that are bad on their face or rated too low.

    Args:
        config: Settings: file, columns, split and minimum rating.

    Returns:
        `row` (counted from 1), `user_id`, `item_id`, and where the file has them `rating` and `timestamp` (float64) and
        `label` (int8); with the account of the rows.

    Raises:
        UserError: The file cannot be read, has no rows, or lacks a column that the settings need.
    """
    table = Table(config.interactions, "interactions", _SUFFIXES)
    columns = config.columns
    user, item = _present(table, columns.user, "userID"), _present(table, columns.item, "itemID")
    needed = {columns.rating: config.min_rating is not None, columns.time: config.split == "leave_one_out"}
    needed[_LABEL] = config.split == "given"
    rows = table.read(required=[user, item, *(name for name in needed if needed[name])], optional=needed)
    extras = {columns.rating: "rating", columns.time: "timestamp", _LABEL: "label"}
    parsed = {extras[name]: _PARSERS[extras[name]](name) for name in extras if name in rows.columns}
    rows = rows.select("row", user_id=pl.col(user), item_id=pl.col(item), **parsed)
    tally = Tally("interactions", rows.height)
    return _drop_bad_rows(rows, tally, config), tally


def drop_unknown_items(
    rows: pl.DataFrame, tally: Tally, item_ids: pl.Series, reason: str, *, fault: bool
) -> pl.DataFrame:
    """Leave out interactions with items that are not in a list.

    Args:
        rows: Interactions.
        tally: Their account.
        item_ids: Distinct item ids that are known.
        reason: What to call the others.
        fault: Whether they are mistakes in the input.

    Returns:
        The other interactions.
    """
    unknown = ~pl.col("item_id").is_in(item_ids.implode())
    return tally.drop(rows, unknown, reason, show=_SHOW, fault=fault)


def keep_core(rows: pl.DataFrame, tally: Tally, core: int) -> pl.DataFrame:
    """Leave out repeated pairs, then users and items that have too few interactions until none has.

    Args:
        rows: Interactions with `user_index` and `item_index`.
        tally: Their account.
        core: Fewest interactions of a user and of an item; 0 keeps all.

    Returns:
        The interactions of the k-core.
    """
    pair = pl.col("user_index") * (pl.col("item_index").max() + 1) + pl.col("item_index")
    rows = tally.drop(rows, ~pair.is_first_distinct(), "repeated user and item", show=_SHOW, fault=False)
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


def sort_ids(ids: pl.Series) -> pl.Series:
    """Bring ids into an order that does not depend on the file's: by number if all are numbers, else by letter.

    Args:
        ids: Ids, as text, with repetitions.

    Returns:
        The distinct ids in order.
    """
    distinct = pl.DataFrame({"id": ids.unique()}).with_columns(number=pl.col("id").cast(pl.Int64, strict=False))
    order = ["id"] if distinct["number"].has_nulls() else ["number", "id"]
    return distinct.sort(order)["id"]


def index_of(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Number ids by their position in a list.

    Args:
        ids: Ids, all of them in `known`.
        known: Distinct ids.

    Returns:
        Position of each id, int64, as long as `ids`.
    """
    positions = pl.DataFrame({"id": known, "index": pl.Series(np.arange(len(known), dtype=np.int64))})
    return ids.to_frame("id").join(positions, on="id", how="left", maintain_order="left")["index"]


def _present(table: Table, name: str, other: str) -> str:
    return other if name not in table.columns and other in table.columns else name


def _number(name: str) -> pl.Expr:
    number = pl.col(name).cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def _time(name: str) -> pl.Expr:
    day = pl.col(name).str.contains(r"^\d{4}-\d{2}-\d{2}$")
    text = pl.when(day).then(pl.col(name) + "T00:00:00").otherwise(pl.col(name).str.replace(" ", "T"))
    local = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    zoned = text.str.to_datetime("%+", time_unit="us", strict=False)
    return pl.coalesce(_number(name), local.dt.epoch("us") / 1e6, zoned.dt.epoch("us") / 1e6)


def _label(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int8, strict=False)


_PARSERS: dict[str, Callable[[str], pl.Expr]] = {"rating": _number, "timestamp": _time, "label": _label}


def _drop_bad_rows(rows: pl.DataFrame, tally: Tally, config: PackConfig) -> pl.DataFrame:
    rows = tally.drop(rows, pl.col("user_id") == "", "empty user id", show=_SHOW)
    rows = tally.drop(rows, pl.col("item_id") == "", "empty item id", show=_SHOW)
    if config.min_rating is not None:
        rows = tally.drop(rows, pl.col("rating").is_null(), "rating is not a number", show=_SHOW)
        low = pl.col("rating") < config.min_rating
        rows = tally.drop(rows, low, f"rating below {config.min_rating:g}", show=_SHOW, fault=False)
    if config.split == "leave_one_out":
        rows = tally.drop(rows, pl.col("timestamp").is_null(), "time is not a number or an ISO 8601 date", show=_SHOW)
    if config.split == "given":
        bad = ~pl.col("label").is_between(0, 2).fill_null(False)
        rows = tally.drop(rows, bad, f"{_LABEL} is not 0, 1 or 2", show=_SHOW)
    return rows
