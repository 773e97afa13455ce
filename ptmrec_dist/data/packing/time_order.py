"""The interactions of each part in time order, sorted without ever being in memory together.

Rows are divided by time into groups that are sorted in memory. A time that many rows have is a group of its own, which needs no
sorting, however long it is.

Shape suffixes: E interactions, R those of a block, K groups.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from ptmrec_dist.data.blocks import Groups, computed, floats_of, length_of_blocks, slices_of
from ptmrec_dist.data.ids import numbers_of
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.data.scratch import Scratch

Columns = Mapping[str, np.ndarray]
_PER_BOUND = 64
"""Rows that are looked at for each bound between groups, so that no group is much longer than others."""


def parts_in_order(rows: pl.DataFrame, by_item: bool, scratch: Scratch) -> dict[str, pl.DataFrame]:
    """Divide interactions into parts, each in time order where there are times; rows at the same time stay in their order.

    Args:
        rows: `user_id` and `item_id` of `Enum` types, `part`, and where there are any `rating` and `timestamp`.
        by_item: Whether rows at the same time are ordered by item first.
        scratch: Where columns are stored.

    Returns:
        For each part that has rows `user_index`, `item_index`, and where there are any `rating` and `timestamp`.
    """
    labels_E = numbers_of(rows["part"])
    columns = {"user_index": numbers_of(rows["user_id"]), "item_index": numbers_of(rows["item_id"])}
    columns |= {name: floats_of(rows[name], scratch) for name in ("rating", "timestamp") if name in rows.columns}
    bounds = _bounds(columns, rows.height, by_item)
    groups_a_part = 2 * len(bounds) + 1
    size = len(PARTS) * groups_a_part

    def group_of(block: slice) -> np.ndarray:
        keys_R = _keys(columns, block, by_item)
        after_R = np.searchsorted(bounds, keys_R)
        at_R = np.append(bounds, np.nan)[after_R] == keys_R
        groups_R: np.ndarray = labels_E[block].astype(np.int64) * groups_a_part + 2 * after_R + at_R  # odd: at a bound
        return groups_R

    groups = Groups(computed(group_of, rows.height, np.min_scalar_type(size), scratch), size, scratch)
    columns = dict(zip(columns, groups.gathered(list(columns.values())), strict=True))
    parts = {}
    for number, part in enumerate(PARTS):
        places = groups.places[number * groups_a_part : (number + 1) * groups_a_part]
        if places[0].start < places[-1].stop:
            parts[part] = scratch.table(_in_order(columns, places, by_item))
    return parts


def _bounds(columns: Columns, rows: int, by_item: bool) -> np.ndarray:
    """Distinct keys, increasing, between which there are about as many rows as fit into half a block."""
    number = 2 * rows // length_of_blocks()
    sample = np.sort(_keys(columns, slice(0, rows, max(1, rows // (_PER_BOUND * (number + 1)))), by_item))
    return np.unique(sample[np.arange(1, number + 1) * len(sample) // (number + 1)])


def _keys(columns: Columns, rows: slice, by_item: bool) -> np.ndarray:
    """Numbers by which rows are sorted: the time, before all others where there is none, or the time and then the item."""
    if "timestamp" not in columns:
        return np.zeros(len(columns["user_index"][rows]))
    times_R = columns["timestamp"][rows]
    times_R = np.where(np.isnan(times_R), -np.inf, times_R)
    if not by_item:
        return times_R
    keys_R = np.empty(len(times_R), dtype=np.complex128)  # NumPy orders complex numbers by their real parts first
    keys_R.real, keys_R.imag = times_R, columns["item_index"][rows]
    return keys_R


def _in_order(columns: Columns, places: Sequence[slice], by_item: bool) -> Iterator[pl.DataFrame]:
    """Blocks of a part's rows, given the places of its groups."""
    for number, group in enumerate(places):
        rows = group.stop - group.start
        if number % 2 == 0 and rows:
            order = np.argsort(_keys(columns, group, by_item), kind="stable")
            yield _frame({name: column[group][order] for name, column in columns.items()})
        elif rows:
            for block in slices_of(rows):
                start, stop = group.start + block.start, group.start + block.stop
                yield _frame({name: column[start:stop] for name, column in columns.items()})


def _frame(columns: Columns) -> pl.DataFrame:
    indices = pl.col("user_index", "item_index").cast(pl.Int64)
    return pl.DataFrame(dict(columns)).with_columns(indices, pl.col("^(rating|timestamp)$").fill_nan(None))
