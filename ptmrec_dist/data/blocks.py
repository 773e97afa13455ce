"""Walks over all interactions in blocks, so that what is computed on the way never takes memory for all of them.

Shape suffixes: E interactions, R those of a block.
"""

from collections.abc import Iterator

import numpy as np

_ROWS = 2**20
"""Interactions of a block, about."""
_MOST_BLOCKS = 64
"""Finding the interactions of some users reads those of all, so there are no more blocks than this."""


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
        yield slice(start, start + length)


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


def blocks_of_users(users_E: np.ndarray, counts_U: np.ndarray) -> Iterator[np.ndarray]:
    """Divide interactions so that those of a user are together.

    Args:
        users_E: User of each interaction.
        counts_U: Interactions of each user.

    Yields:
        Positions of the interactions of a block, increasing, int64 [R].
    """
    before_U = np.cumsum(counts_U) - counts_U
    length = max(_ROWS, -(-len(users_E) // _MOST_BLOCKS))
    starts = np.searchsorted(before_U, np.arange(0, len(users_E), length))
    for start, end in zip(starts, [*starts[1:], len(counts_U)], strict=True):
        if start < end:
            yield np.flatnonzero((users_E >= start) & (users_E < end))
