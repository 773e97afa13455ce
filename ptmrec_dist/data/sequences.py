"""Training sequences: the training items of every user in time order, for models that predict each from those before.

Shape suffixes: B sequences looked up, E training interactions, I items, S sequences, U users, L items that a model reads.
"""

import logging

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories, PaddedHistories, RecentItems, grouped
from ptmrec_dist.errors import UserError

_log = logging.getLogger(__name__)


class TrainingSequences:
    """The sequences to train on. A sequence has L + 1 items at most: the last L are targets, each after those before it.

    A longer history is cut, from its end: each sequence begins with the item that the one before it ends with, so that every
    training item but a user's first is a target once. Users with one training interaction have nothing to predict; they are
    left out and counted.

    Args:
        dataset: Packed data set.
        length: Items that the model reads L.
        latest: Train on the latest sequence of each user alone.

    Raises:
        UserError: Interactions without times, or no user with two training interactions.
    """

    def __init__(self, dataset: Dataset, length: int, latest: bool = False) -> None:
        dataset.require_times("train")
        train = dataset.sequences("train")
        self.histories = Histories(train, dataset.num_users, dataset.num_items)
        """All training items of each user, as sets."""
        counts_U = np.bincount(train.users, minlength=dataset.num_users)
        sequences_U = -(-np.maximum(counts_U - 1, 0) // length)
        sequences_U = np.minimum(sequences_U, 1) if latest else sequences_U
        self.users: np.ndarray = np.repeat(np.arange(dataset.num_users), sequences_U)
        """User of each sequence, ascending, int64 [S]."""
        self._refuse_no_user(dataset)
        self.num_targets = int(np.minimum(np.maximum(counts_U - 1, 0), sequences_U * length).sum())
        """Items that are predicted in an epoch."""
        self._recent = RecentItems(train, dataset.num_users, length + 1)
        firsts_U = np.cumsum(sequences_U) - sequences_U
        self._later_S = (np.arange(len(self.users)) - firsts_U[self.users]) * length
        self.occurrences: np.ndarray = _occurrences(train, sequences_U, length, dataset.num_items)
        """How often each item occurs in the sequences, int64 [I]."""
        self._warn_of_unread(counts_U)

    def of(self, sequences_B: np.ndarray) -> PaddedHistories:
        """Look sequences up.

        Args:
            sequences_B: Which ones, int64 [B].

        Returns:
            Their items, on the CPU.
        """
        users_B, later_B = self.users[sequences_B], self._later_S[sequences_B]
        return self._recent.latest(torch.from_numpy(users_B), torch.from_numpy(later_B))

    def per_step(self, batch_size: int) -> int:
        """Count the sequences of a step.

        Args:
            batch_size: Targets of a step, on average.

        Returns:
            Sequences, 1 to S.
        """
        return min(max(1, round(batch_size * len(self.users) / self.num_targets)), len(self.users))

    def _refuse_no_user(self, dataset: Dataset) -> None:
        if not len(self.users):
            raise UserError(
                f"shards: no user of {dataset.folder} has 2 training interactions, expected some in which one item follows "
                "another; pack users with more interactions"
            )

    def _warn_of_unread(self, counts_U: np.ndarray) -> None:
        alone = int((counts_U < 2).sum())
        older = int(np.maximum(counts_U - 1, 0).sum()) - self.num_targets
        if alone:
            _log.warning(
                "%d of %d users have fewer than 2 training interactions: they are not trained on", alone, len(counts_U)
            )
        if older:
            _log.warning(
                "%d of %d training interactions are not trained on: --sequences latest reads each user's latest sequence alone",
                older,
                counts_U.sum(),
            )


def _occurrences(train: Interactions, sequences_U: np.ndarray, length: int, num_items: int) -> np.ndarray:
    """Count the items in all sequences: one that ends a sequence and begins another counts twice, int64 [I]."""
    order_E, starts = grouped(train.users, len(sequences_U))
    users_E = train.users[order_E]
    later_E = starts[users_E + 1] - np.arange(len(order_E)) - 1  # interactions that the user has after this one
    sequence_E, place_E = np.divmod(later_E, length)
    inside_E = sequence_E < sequences_U[users_E]
    first_E = (place_E == 0) & (sequence_E > 0) & (sequence_E <= sequences_U[users_E])
    occurrences = np.bincount(train.items[order_E], inside_E.astype(np.int64) + first_E, minlength=num_items)
    return occurrences.astype(np.int64)
