"""Training batches of stage 2: items with their content, joined with their interactions.

Item-major (ours): a step streams B distinct items and joins each with its users, in memory. Interaction-major
(the paper's): a step samples B interactions and fetches the content of their items. Both give the same `TrainBatch`.

Legend: B local items, R local rows (interactions), V distinct users of the rows, E interactions of the training part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import grouped
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.stream import ItemBatch, ItemStream, moved


@dataclass(frozen=True)
class TrainBatch:
    """This rank's batch of one step."""

    content: ItemBatch
    """The step's distinct items on this rank."""
    users: Tensor
    """User of each row, int64 [R]."""
    columns: Tensor
    """Position in `content.items` of each row's item, int64 [R]."""
    distinct_users: Tensor
    """The users of the rows, each once, int64 [V]."""
    user_counts: Tensor
    """Rows of each of them, int64 [V]."""
    interactions: Tensor
    """Position of each row among the training interactions, int64 [R]."""

    @classmethod
    def of(
        cls, content: ItemBatch, users_R: np.ndarray, columns_R: np.ndarray, interactions_R: np.ndarray
    ) -> "TrainBatch":
        """Build a batch on the host, where data-dependent sizes need no device synchronisation.

        Args:
            content: The items.
            users_R: User of each row, int64 [R].
            columns_R: Position of each row's item, int64 [R].
            interactions_R: Position of each row among the training interactions, int64 [R].

        Returns:
            The batch.
        """
        users_V, counts_V = np.unique(users_R, return_counts=True)
        return cls(content, *map(torch.from_numpy, (users_R, columns_R, users_V, counts_V, interactions_R)))

    def to(self, device: torch.device) -> "TrainBatch":
        """Move everything to a device.

        Args:
            device: Where to.

        Returns:
            The moved batch.
        """
        content = self.content.to(device)
        rest = (self.users, self.columns, self.distinct_users, self.user_counts, self.interactions)
        return TrainBatch(content, *(moved(part, device) for part in rest))


class ItemMajor:
    """One epoch streams every item once, each with all its interactions or a sample of them.

    Args:
        stream: The items.
        train: Training interactions.
        num_items: I.
        limit: Largest number of interactions of an item that a step trains on, sampled anew every epoch; None takes all.
        seed: Seed of that sample.
    """

    def __init__(self, stream: ItemStream, train: Interactions, num_items: int, limit: int | None, seed: int) -> None:
        self.stream, self.train, self.limit, self.seed = stream, train, limit, seed
        self.by_item, self.starts = grouped(train.items, num_items)

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps, the same on every rank.
        """
        return self.stream.steps(epoch)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[TrainBatch]:
        """Stream one epoch.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to leave out at the start.

        Yields:
            The remaining batches.
        """
        for content in self.stream.epoch(epoch, skip):
            chosen = [self._interactions_of(int(item), epoch) for item in content.items]
            columns_R = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
            rows_R = np.concatenate([np.empty(0, np.int64), *chosen])
            yield TrainBatch.of(content, self.train.users[rows_R], columns_R, rows_R)

    def _interactions_of(self, item: int, epoch: int) -> np.ndarray:
        rows: np.ndarray = self.by_item[self.starts[item] : self.starts[item + 1]]
        if self.limit is None or len(rows) <= self.limit:
            return rows
        # Seeded by item, not by rank: the sample does not depend on how items are distributed over ranks.
        sampled: np.ndarray = np.random.default_rng((self.seed, epoch, item)).choice(rows, self.limit, replace=False)
        return sampled


class InteractionMajor:
    """One epoch visits every interaction once, in random order; an item is fetched in each step that has it.

    Args:
        files: Random access to the items' content.
        train: Training interactions.
        rank: This rank.
        world_size: Number of ranks.
        batch_size: Interactions per step on this rank.
        seed: Seed of the order.
    """

    def __init__(
        self, files: ItemFiles, train: Interactions, rank: int, world_size: int, batch_size: int, seed: int
    ) -> None:
        self.files, self.train, self.rank, self.world_size = files, train, rank, world_size
        self.batch_size, self.seed = batch_size, seed

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps, the same on every rank.
        """
        return -(-len(self.train.items) // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[TrainBatch]:
        """Iterate over one epoch.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to leave out at the start.

        Yields:
            The remaining batches.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train.items))
        for step in range(skip, self.steps(epoch)):
            first = (step * self.world_size + self.rank) * self.batch_size
            rows = order[first : first + self.batch_size]
            content = self.files.read(np.unique(self.train.items[rows]))
            items = content.items.numpy()
            rows = rows[np.isin(self.train.items[rows], items)]
            columns = np.searchsorted(items, self.train.items[rows])
            yield TrainBatch.of(content, self.train.users[rows], columns, rows)
