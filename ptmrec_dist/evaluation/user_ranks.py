"""Ranks of the positives of users: what ranking metrics are computed from.

Shape suffixes: P positives, N users with positives, K cut-off.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class UserRanks:
    """Ranks of the positives of some users; those of one user are contiguous."""

    ranks: np.ndarray
    """Rank of each positive, from 1, int64 [P]."""
    counts: np.ndarray
    """Positives of each user, at least 1, int64 [N]."""

    def sum(self, values_P: np.ndarray) -> np.ndarray:
        """Sum over the positives of each user.

        Args:
            values_P: Value of each positive, [P].

        Returns:
            Sums, float64 [N].
        """
        return np.add.reduceat(values_P.astype(np.float64), self._starts) if len(self.counts) else np.zeros(0)

    def hits(self, k: int) -> np.ndarray:
        """Count the positives among the first K.

        Args:
            k: Cut-off K.

        Returns:
            float64 [N].
        """
        return self.sum(self.ranks <= k)

    def gain(self, k: int) -> np.ndarray:
        """Sum 1 / log2(rank + 1) over the positives among the first K.

        Args:
            k: Cut-off K.

        Returns:
            float64 [N].
        """
        return self.sum((self.ranks <= k) / np.log2(self.ranks + 1.0))

    def ideal_gain(self, k: int) -> np.ndarray:
        """Compute the gain of a ranking that starts with all positives.

        Args:
            k: Cut-off K.

        Returns:
            float64 [N].
        """
        best_N: np.ndarray = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(self.counts, k) - 1]
        return best_N

    def precisions(self, k: int) -> np.ndarray:
        """Sum, over the positives among the first K, the fraction of positives among the items up to each of them.

        Args:
            k: Cut-off K.

        Returns:
            float64 [N].
        """
        places_P = np.arange(1, len(self.ranks) + 1) - np.repeat(self._starts, self.counts)
        return self.sum((self._ascending <= k) * places_P / self._ascending)

    def best(self) -> np.ndarray:
        """Return the rank of the best positive of each user.

        Returns:
            int64 [N].
        """
        if not len(self.counts):
            return np.zeros(0, np.int64)
        best_N: np.ndarray = np.minimum.reduceat(self.ranks, self._starts)
        return best_N

    @cached_property  # one sort for all K
    def _ascending(self) -> np.ndarray:
        """Ranks, ascending within each user, int64 [P]."""
        width = self.ranks.max(initial=0) + 1
        offsets_P = np.repeat(np.arange(len(self.counts)) * width, self.counts)
        ranks_P: np.ndarray = np.sort(offsets_P + self.ranks) - offsets_P
        return ranks_P

    @property
    def _starts(self) -> np.ndarray:
        starts_N: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts_N
