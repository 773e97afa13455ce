"""Training sequences: the latest training items of every user in time order, for models that predict each from those before.

Shape suffixes: B users looked up, E training interactions, I items, U users, L items that a model reads.
"""

import logging

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.histories import Histories, PaddedHistories, RecentItems, grouped
from ptmrec_dist.errors import UserError

_log = logging.getLogger(__name__)


class TrainingSequences:
    """The sequences to train on. A sequence has L + 1 items at most: the last L are targets, each after those before it.

    Users with one training interaction have nothing to predict; they are left out and counted.

    Args:
        dataset: Packed data set.
        length: Items that the model reads L.

    Raises:
        UserError: Interactions without times, or no user with two training interactions.
    """

    def __init__(self, dataset: Dataset, length: int) -> None:
        dataset.require_times("train")
        train = dataset.sequences("train")
        self.histories = Histories(train, dataset.num_users, dataset.num_items)
        """All training items of each user, as sets."""
        counts_U = np.bincount(train.users, minlength=dataset.num_users)
        self.users: np.ndarray = np.flatnonzero(counts_U >= 2)
        """Users to train on, ascending, int64."""
        self._refuse_no_user(dataset)
        self.num_targets = int(np.minimum(counts_U[self.users] - 1, length).sum())
        """Items that are predicted in an epoch."""
        self._recent = RecentItems(train, dataset.num_users, length + 1)
        order_E, starts = grouped(train.users, dataset.num_users)
        users_E = train.users[order_E]
        later_E = starts[users_E + 1] - np.arange(len(order_E)) - 1  # interactions that the user has after this one
        kept_E = (later_E <= length) & (counts_U[users_E] >= 2)
        self.occurrences: np.ndarray = np.bincount(train.items[order_E[kept_E]], minlength=dataset.num_items)
        """How often each item occurs in the sequences, int64 [I]."""
        self._warn_of_unread(counts_U, length)

    def of(self, users_B: np.ndarray) -> PaddedHistories:
        """Look sequences up.

        Args:
            users_B: User indices, int64 [B].

        Returns:
            Their last L + 1 training items, on the CPU.
        """
        return self._recent.latest(torch.from_numpy(users_B))

    def _refuse_no_user(self, dataset: Dataset) -> None:
        if not len(self.users):
            raise UserError(
                f"shards: no user of {dataset.folder} has 2 training interactions, expected some in which one item follows "
                "another; pack users with more interactions"
            )

    def _warn_of_unread(self, counts_U: np.ndarray, length: int) -> None:
        alone, older = len(counts_U) - len(self.users), int(np.maximum(counts_U - length - 1, 0).sum())
        if alone:
            _log.warning(
                "%d of %d users have fewer than 2 training interactions: they are not trained on", alone, len(counts_U)
            )
        if older:
            _log.warning(
                "%d of %d training interactions are not trained on: a user's sequence has the latest %d items; a larger "
                "--model.length reads more",
                older,
                counts_U.sum(),
                length + 1,
            )
