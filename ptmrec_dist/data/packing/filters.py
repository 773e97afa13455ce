"""Filters of interactions: unknown items, repeated pairs, the k-core. Each goes through the rows in blocks and counts.

Shape suffixes: E interactions, R those of a block, U users, I items.
"""

import logging

import numpy as np
import polars as pl

from ptmrec_dist.data.blocks import computed, counts_of, floats_of, for_users, slices_of
from ptmrec_dist.data.ids import known_to, not_among, numbers_of, respelled, spelled_as
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch

_log = logging.getLogger(__name__)
SHOW = "row {row}: user {user_id!r}, item {item_id!r}"
"""Example of an interaction."""


def match_items(rows: pl.DataFrame, item_ids: pl.Series, scratch: Scratch = IN_MEMORY) -> pl.DataFrame:
    """Spell item ids as the catalogue does where they differ by leading zeros or `.0` alone, and log it.

    Args:
        rows: Interactions.
        item_ids: Item ids of the catalogue.
        scratch: Where columns are stored.

    Returns:
        The interactions, with item ids of the catalogue where the match is unambiguous.
    """
    ids = rows["item_id"]
    spelled = respelled(ids, lambda distinct: spelled_as(distinct, item_ids), scratch)
    if spelled is ids:
        return rows
    pairs = pl.DataFrame({"item_id": ids, "spelled": spelled})
    changed = pairs.clear()
    for block in slices_of(rows.height):
        found = pairs[block].filter(pl.col("item_id") != pl.col("spelled"))
        changed = pl.concat([changed, found]).unique(maintain_order=True)
    theirs, ours = changed.row(0)
    _log.warning(
        "interactions: %d item ids differ from the catalogue's only by leading zeros or .0 and are matched: %r to %r",
        changed.height,
        theirs,
        ours,
    )
    return rows.with_columns(item_id=spelled)


def drop_rows(
    rows: pl.DataFrame,
    bad_E: np.ndarray,
    tally: Tally,
    reason: str,
    *,
    show: str = SHOW,
    fault: bool = True,
    hint: str = "",
    scratch: Scratch = IN_MEMORY,
) -> pl.DataFrame:
    """Drop interactions and count them.

    Args:
        rows: Interactions.
        bad_E: True for each one to leave out, bool [E].
        tally: Counts of the interactions.
        reason: Why, a few words.
        show: Format string of an example, with the columns as fields.
        fault: Whether such rows are mistakes in the input, rather than rows that the settings exclude.
        hint: What helps to find the cause, for messages.
        scratch: Where columns are stored.

    Returns:
        The other interactions.
    """
    if not bad_E.any():
        return rows
    return scratch.table(
        tally.drop(rows[block], pl.Series(bad_E[block]), reason, show=show, fault=fault, hint=hint)
        for block in slices_of(rows.height)
    )


def drop_unknown_items(
    rows: pl.DataFrame,
    tally: Tally,
    item_ids: pl.Series,
    reason: str,
    *,
    fault: bool,
    scratch: Scratch = IN_MEMORY,
) -> pl.DataFrame:
    """Drop interactions with items that are not in a list.

    Args:
        rows: Interactions.
        tally: Counts of the interactions.
        item_ids: Distinct known item ids.
        reason: Reason to record for the dropped rows.
        fault: Whether unknown items are mistakes in the input.
        scratch: Where columns are stored.

    Returns:
        The other interactions.
    """
    unknown_E = not_among(rows["item_id"], item_ids, scratch)
    hint = f"the catalogue has {', '.join(map(repr, item_ids.head(2)))}" if fault else ""
    return drop_rows(rows, unknown_E, tally, reason, fault=fault, hint=hint, scratch=scratch)


def drop_repeats(rows: pl.DataFrame, tally: Tally, scratch: Scratch = IN_MEMORY) -> pl.DataFrame:
    """Drop repeated pairs: the earliest row stays; without times, or at the same time, the first of the file.

    Args:
        rows: Interactions, with ids of `Enum` types.
        tally: Counts of the interactions.
        scratch: Where columns are stored.

    Returns:
        The interactions, each pair once.
    """
    users_E, columns_E = numbers_of(rows["user_id"]), [numbers_of(rows["item_id"])]
    if "timestamp" in rows.columns:
        columns_E.append(floats_of(rows["timestamp"], scratch))
    counts_U = counts_of(users_E, len(known_to(rows["user_id"])))
    repeated_E = for_users(_repeated, users_E, columns_E, counts_U, bool, scratch)
    return drop_rows(rows, repeated_E, tally, "repeated user and item", fault=False, scratch=scratch)


def keep_core(rows: pl.DataFrame, tally: Tally, core: int, scratch: Scratch = IN_MEMORY) -> pl.DataFrame:
    """Drop users and items with too few interactions, repeatedly, until none is left.

    Args:
        rows: Interactions, with ids of `Enum` types.
        tally: Counts of the interactions.
        core: Fewest interactions of a user and of an item; 0 keeps all.
        scratch: Where columns are stored.

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
    rare_E = computed(lambda block: ~(stay_U[users_E[block]] & stay_I[items_E[block]]), rows.height, bool, scratch)
    reason = f"user or item with fewer than {core} interactions"
    return drop_rows(rows, rare_E, tally, reason, fault=False, scratch=scratch)


def _repeated(users_R: np.ndarray, items_R: np.ndarray, *times_R: np.ndarray) -> np.ndarray:
    """Which rows are not the earliest of their user and item; those without a time come last."""
    pairs_R = users_R.astype(np.uint64) << np.uint64(32) | items_R
    order_R = np.argsort(times_R[0], kind="stable") if times_R else np.arange(len(pairs_R))
    repeated_R = np.ones(len(pairs_R), dtype=bool)
    repeated_R[order_R[np.unique(pairs_R[order_R], return_index=True)[1]]] = False
    return repeated_R
