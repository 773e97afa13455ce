"""Cold start as PMMRec measures it (arXiv 2312.09602, table VII): items with few training interactions, after every prefix.

A row is a prefix of a user's whole sequence, of training, validation and test, that a cold item follows. The paper takes all of
them, of which those that end within training were trained on; `held_out` are those whose target is in validation or test, `new`
those whose target has no training interaction at all. All items are ranked, without those of the prefix.

Shape suffixes: E interactions, R rows, B rows of a block, U users, I items.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories, grouped

ROWS = ("all", "held_out", "new")
"""Sets of rows, each of which contains the next."""


@dataclass(frozen=True)
class ColdRows:
    """Prefixes that a cold item follows, user by user."""

    sequences: Interactions
    """Whole sequences of all users, in time order."""
    positions: np.ndarray
    """Position of each target in `sequences`, int64 [R]."""
    held_out: np.ndarray
    """Whether the target is in validation or test, bool [R]."""
    new: np.ndarray
    """Whether the target has no training interaction, bool [R]."""
    order: np.ndarray
    """Positions in `sequences` user by user, int64 [E]."""
    starts: np.ndarray
    """First entry in `order` of each user, and E, int64 [U + 1]."""
    ends: np.ndarray
    """Entry in `order` of each target, int64 [R]."""

    @property
    def users(self) -> np.ndarray:
        """User of each row, ascending, int64 [R]."""
        users_R: np.ndarray = self.sequences.users[self.positions]
        return users_R

    @property
    def targets(self) -> np.ndarray:
        """Item that follows each prefix, int64 [R]."""
        targets_R: np.ndarray = self.sequences.items[self.positions]
        return targets_R

    def of(self, rows: str) -> np.ndarray:
        """Find the rows of a set.

        Args:
            rows: One of `ROWS`.

        Returns:
            bool [R].
        """
        return {"all": np.ones(len(self.positions), dtype=bool), "held_out": self.held_out, "new": self.new}[rows]

    def prefixes(self, rows_B: np.ndarray, num_items: int) -> Histories:
        """Look up whole prefixes.

        Args:
            rows_B: Rows, int64 [B].
            num_items: Number of items I.

        Returns:
            Items of each, numbered from 0 in the order of `rows_B`.
        """
        starts_B = self.starts[self.users[rows_B]]
        lengths_B = self.ends[rows_B] - starts_B
        shifts_B = starts_B - (np.cumsum(lengths_B) - lengths_B)
        entries = np.arange(lengths_B.sum()) + np.repeat(shifts_B, lengths_B)
        taken = Interactions(np.repeat(np.arange(len(rows_B)), lengths_B), self.sequences.items[self.order[entries]])
        return Histories(taken, len(rows_B), num_items)


def cold_rows(dataset: Dataset, below: int) -> ColdRows:
    """Find the rows of a data set.

    Args:
        dataset: Packed data set, with times.
        below: An item is cold that has fewer training interactions; 10 in the paper.

    Returns:
        The rows; those of a user without an item before the target are none.

    Raises:
        UserError: Interactions without times, or no row.
    """
    parts = [part for part in ("train", "validation", "test") if part in dataset.parts]
    dataset.require_times(*parts)
    tables = [
        dataset.table(part).select("user_index", "item_index", "timestamp", train=pl.lit(part == "train"))
        for part in parts
    ]
    table = pl.concat(tables).sort("timestamp", maintain_order=True)
    users_E, items_E, train_E = (table[name].to_numpy() for name in ("user_index", "item_index", "train"))
    order_E, starts = grouped(users_E, dataset.num_users)
    trained_I = np.bincount(items_E[train_E], minlength=dataset.num_items)
    cold_E = trained_I[items_E[order_E]] < below
    cold_E &= np.arange(len(order_E)) > starts[users_E[order_E]]
    ends = np.flatnonzero(cold_E)
    positions = order_E[ends]
    return ColdRows(
        Interactions(users_E, items_E),
        positions,
        held_out=~train_E[positions],
        new=trained_I[items_E[positions]] == 0,
        order=order_E,
        starts=starts,
        ends=ends,
    )
