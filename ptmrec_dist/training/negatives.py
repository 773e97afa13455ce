"""Known positives, and items that a user did not take.

Everything here stays on the tensors' device and never waits for it.

Shape suffixes: B batch rows, E interactions, U users, I items.
"""

import logging

import numpy as np
import torch
from torch import Generator, Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories

_log = logging.getLogger(__name__)


class KnownPositives:
    """Tells whether a user is known to like an item.

    Args:
        interactions: The known pairs.
        num_items: Number of items I.
        device: Where the answers are wanted.
    """

    def __init__(self, interactions: Interactions, num_items: int, device: torch.device | str = "cpu") -> None:
        pairs = Histories(interactions, int(interactions.users.max(initial=-1)) + 1, num_items)
        self._num_items = num_items
        # The last key is no pair's: every search ends inside the table.
        keys = np.append(pairs.users * num_items + pairs.items, np.iinfo(np.int64).max)
        self._keys = torch.from_numpy(keys).to(device)

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """Look pairs up.

        Args:
            users: User indices, int64, any shape.
            items: Item indices, int64, a shape that broadcasts with that of `users`: [R, 1] and [1, G] give [R, G].

        Returns:
            True where the pair is known, bool, the broadcast shape.
        """
        keys = users * self._num_items + items
        return self._keys[torch.searchsorted(self._keys, keys)] == keys


class NegativeSampler:
    """Samples items uniformly among the training items that a user did not take in training.

    Nothing is sampled twice: with the user's n items s_0 < s_1 < ... among the I training items, the r-th item that is
    not one of them is r + j, where j counts the i with s_i - i <= r. A uniform r in [0, I - n) and one binary search
    give the item.

    A user who took every training item has no negatives; for such a user all training items are equally likely.

    Args:
        train: Training interactions; only items that occur in them are sampled.
        num_users: Number of users U.
        device: Where the users come from and the items are wanted.
    """

    def __init__(self, train: Interactions, num_users: int, device: torch.device | str = "cpu") -> None:
        is_train = np.bincount(train.items) > 0
        items_I = torch.from_numpy(np.flatnonzero(is_train))
        pairs = Histories(train, num_users, len(is_train))
        users_E, counts_U = torch.from_numpy(pairs.users), torch.from_numpy(pairs.counts)
        places_E = torch.from_numpy((np.cumsum(is_train) - 1)[pairs.items])
        full_U = counts_U == len(items_I)
        if full_U.any():
            _log.warning("%d users took every training item: their negatives are sampled from all items", full_U.sum())
            partial_E = ~full_U[users_E]
            users_E, places_E = users_E[partial_E], places_E[partial_E]
            counts_U = counts_U.where(~full_U, 0)
        starts_U = counts_U.cumsum(0) - counts_U
        skipped_E = torch.arange(len(users_E)) - starts_U[users_E]
        self._stride = len(items_I)
        self._items = items_I.to(device)
        self._starts = starts_U.to(device)
        self._free = (len(items_I) - counts_U).to(device)
        self._keys = (users_E * self._stride + places_E - skipped_E).to(device)

    def sample(self, users_B: Tensor, generator: Generator) -> Tensor:
        """Sample one item for each row.

        Args:
            users_B: User indices, int64 [B], on the sampler's device.
            generator: Source of randomness, on the same device.

        Returns:
            Item indices, int64 [B].
        """
        uniform_B = torch.rand(users_B.shape, generator=generator, dtype=torch.float64, device=users_B.device)
        return self._free_items(users_B, (uniform_B * self._free[users_B]).long())

    def choose(self, users: Tensor, numbers: Tensor) -> Tensor:
        """Turn random numbers into items.

        Args:
            users: User indices, int64, any shape.
            numbers: Random numbers from 0, of a range much larger than the number of items, int64, the same shape.

        Returns:
            Item indices, int64, the same shape.
        """
        return self._free_items(users, numbers % self._free[users])

    @property
    def num_items(self) -> int:
        """Number of items that are sampled from."""
        return len(self._items)

    def _free_items(self, users_B: Tensor, ranks_B: Tensor) -> Tensor:
        """The `ranks_B`-th of the items that each user did not take."""
        before_B = torch.searchsorted(self._keys, users_B * self._stride + ranks_B, right=True) - self._starts[users_B]
        negatives_B: Tensor = self._items[ranks_B + before_B]
        return negatives_B
