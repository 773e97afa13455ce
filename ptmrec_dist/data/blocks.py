"""Walks over all interactions in blocks, so that what is computed on the way never takes memory for all of them.

Arrays may be files mapped into memory: they are read and written from their start to their end. Where interactions must be
brought together that are apart (those of a user), they are first divided into groups that fit into memory.

Shape suffixes: E interactions, R those of a block, K groups, U users, I items.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import DTypeLike

from ptmrec_dist.data.scratch import Scratch

_ROWS = 2**20
"""Interactions of a block, about."""


def slices_of(rows: int, numbers: int = 0) -> Iterator[slice]:
    """Divide interactions in their order.

    Args:
        rows: Number of interactions.
        numbers: Length of what is computed for a block; blocks are no shorter.

    Yields:
        The interactions of a block.
    """
    length = max(_ROWS, numbers)
    for start in range(0, rows, length):
        yield slice(start, min(start + length, rows))


def length_of_blocks() -> int:
    """Return how many interactions are in memory at a time.

    Returns:
        Their number.
    """
    return _ROWS


def counts_of(numbers_E: np.ndarray, size: int) -> np.ndarray:
    """Count how often each number occurs.

    Args:
        numbers_E: Numbers of users or items.
        size: How many users or items there are.

    Returns:
        Interactions of each, int64 [size].
    """
    counts = np.zeros(size, dtype=np.int64)
    for block in slices_of(len(numbers_E), size):
        counts += np.bincount(numbers_E[block], minlength=size)
    return counts


def computed(function: Callable[[slice], np.ndarray], rows: int, dtype: DTypeLike, scratch: Scratch) -> np.ndarray:
    """Compute an array block by block.

    Args:
        function: Gets the interactions of a block and returns their values [R].
        rows: Number of interactions.
        dtype: Type of the values.
        scratch: Where arrays are made.

    Returns:
        The values, [E].
    """
    values_E = scratch.empty(rows, dtype)
    for block in slices_of(rows):
        values_E[block] = function(block)
    return values_E


def floats_of(values: pl.Series, scratch: Scratch) -> np.ndarray:
    """Read a column of numbers.

    Args:
        values: float64.
        scratch: Where arrays are made.

    Returns:
        The numbers, NaN where there is none, float64 [E].
    """
    if not values.has_nulls():
        return values.to_numpy()
    return computed(lambda block: values[block].to_numpy(), len(values), np.float64, scratch)


class Groups:
    """Interactions divided into groups, each in their order.

    Args:
        groups_E: Number of the group of each interaction.
        size: How many groups there are.
        scratch: Where arrays are made.
    """

    def __init__(self, groups_E: np.ndarray, size: int, scratch: Scratch) -> None:
        self._groups_E, self._scratch = groups_E, scratch
        counts_K = counts_of(groups_E, size)
        ends_K = np.cumsum(counts_K)
        self._starts_K = ends_K - counts_K
        self.places = [slice(start, end) for start, end in zip(self._starts_K.tolist(), ends_K.tolist(), strict=True)]
        """Where the interactions of each group are among those of all groups; some may have none."""

    def gathered(self, columns_E: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Bring the interactions of each group together.

        Args:
            columns_E: Columns of the interactions.

        Returns:
            The columns, group by group.
        """
        columns = [self._scratch.empty(len(column_E), column_E.dtype) for column_E in columns_E]
        for rows_R, places_R in self._places():
            for column, column_E in zip(columns, columns_E, strict=True):
                column[places_R] = column_E[rows_R]
        return columns

    def returned(self, column: np.ndarray) -> np.ndarray:
        """Bring a column of the groups back into the order of the interactions.

        Args:
            column: A value of each interaction, group by group.

        Returns:
            The values, [E].
        """
        column_E = self._scratch.empty(len(column), column.dtype)
        for rows_R, places_R in self._places():
            column_E[rows_R] = column[places_R]
        return column_E

    def _places(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The interactions of each block and their places among the groups; the places are increasing."""
        next_K = self._starts_K.copy()
        for block in slices_of(len(self._groups_E), len(next_K)):
            groups_R = self._groups_E[block]
            order_R = np.argsort(groups_R, kind="stable")
            counts_K = np.bincount(groups_R, minlength=len(next_K))
            firsts_K = np.cumsum(counts_K) - counts_K
            yield block.start + order_R, np.repeat(next_K - firsts_K, counts_K) + np.arange(len(order_R))
            next_K += counts_K


def for_users(
    function: Callable[..., np.ndarray],
    users_E: np.ndarray,
    columns_E: Sequence[np.ndarray],
    counts_U: np.ndarray,
    dtype: DTypeLike,
    scratch: Scratch,
) -> np.ndarray:
    """Compute a value of each interaction from all interactions of its user.

    Args:
        function: Gets users [R] and columns [R] of all interactions of some users, and returns the values [R].
        users_E: User of each interaction.
        columns_E: Other columns.
        counts_U: Interactions of each user.
        dtype: Type of the values.
        scratch: Where arrays are made.

    Returns:
        The values, [E].
    """
    group_U = (np.cumsum(counts_U) - counts_U) // _ROWS
    group_U = group_U.astype(np.min_scalar_type(group_U[-1]))
    groups_E = computed(lambda block: group_U[users_E[block]], len(users_E), group_U.dtype, scratch)
    groups = Groups(groups_E, int(group_U[-1]) + 1, scratch)
    users, *columns = groups.gathered([users_E, *columns_E])
    values = scratch.empty(len(users), dtype)
    for rows in groups.places:
        if rows.start < rows.stop:
            values[rows] = function(users[rows], *(column[rows] for column in columns))
    return groups.returned(values)


def inverse_of(permutation_E: np.ndarray, scratch: Scratch) -> np.ndarray:
    """Find the place of each number in a permutation.

    Args:
        permutation_E: The numbers 0 to E - 1 in any order.
        scratch: Where arrays are made.

    Returns:
        The places, [E].
    """
    rows, dtype = len(permutation_E), permutation_E.dtype
    last = max(0, rows - 1) // _ROWS
    groups_E = computed(
        lambda block: permutation_E[block].astype(np.int64) // _ROWS, rows, np.min_scalar_type(last), scratch
    )
    groups = Groups(groups_E, last + 1, scratch)
    places_E = computed(lambda block: np.arange(block.start, block.stop), rows, dtype, scratch)
    numbers, places = groups.gathered([permutation_E, places_E])
    for group in groups.places:
        places_E[numbers[group]] = places[group]
    return places_E
