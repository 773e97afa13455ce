"""What an epoch consists of: the batches of every step, in an order that the seed, the epoch and the step decide.

Legend: E training interactions, G interactions of the global batch, B those of this rank.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator

from ptmrec_dist.config import TunesEncoder
from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import RecentItems
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import World
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Batch
from ptmrec_dist.training.negatives import NegativeSampler
from ptmrec_dist.training.objectives.ranking import RankingBatch


class Batches(Protocol):
    """Source of the steps of every epoch; each step consists of one or more micro-batches."""

    accumulation: int
    """Largest number of micro-batches of a step."""
    layout: str
    """Value of what the order within an epoch depends on; if it has changed, an interrupted epoch starts again."""
    depends_on: str
    """Name of what that is, for messages."""
    generator_device: torch.device
    """Device of the generator of an epoch's random numbers."""

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch, the same on every rank."""

    def epoch(self, epoch: int, skip: int, generator: Generator) -> Iterator[list[Any]]:
        """Return the micro-batches of every step but the first `skip`; the order of the epoch is sampled by the call."""


class Stream(Protocol):
    """Source of batches that are read from shards."""

    def steps(self, epoch: int) -> int:
        """Count the batches of an epoch."""

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch without the first `skip`."""


class StreamedBatches:
    """Batches of a stream, several per step where gradients are accumulated.

    Args:
        stream: The stream.
        accumulation: Batches per step; the last step of an epoch may have fewer.
        layout: What the order of the stream depends on besides the seed and the epoch.
    """

    # GPUs of different models may generate different numbers from one seed, and ranks must agree.
    generator_device = torch.device("cpu")
    depends_on = "ranks and shards"

    def __init__(self, stream: Stream, accumulation: int = 1, layout: str = "") -> None:
        self.stream, self.accumulation, self.layout = stream, accumulation, layout

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps.
        """
        return -(-self.stream.steps(epoch) // self.accumulation)

    def epoch(self, epoch: int, skip: int, generator: Generator) -> Iterator[list[Any]]:
        """Stream one epoch.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to leave out at the start.
            generator: Not used: the order of a stream has a seed of its own.

        Yields:
            The batches of each step.
        """
        batches = self.stream.epoch(epoch, skip * self.accumulation)
        while window := list(itertools.islice(batches, self.accumulation)):
            yield window


class InteractionBatches:
    """Training interactions in random order, each with a negative item; everything stays on the device.

    Every rank samples the whole global batch, the same on all, and takes its part of the rows.

    Args:
        train: Training interactions.
        num_users: Number of users.
        batch_size: Interactions G of the global batch.
        world: This rank and its peers.
        recent: What each user interacted with before, if the recommender reads histories.
    """

    accumulation = 1
    depends_on = "the device"

    def __init__(
        self, train: Interactions, num_users: int, batch_size: int, world: World, recent: RecentItems | None = None
    ) -> None:
        self.batch_size, self.world, self.recent = batch_size, world, recent
        self.generator_device, self.layout = world.device, world.device.type
        self.users_E = torch.tensor(train.users, device=world.device)
        self.items_E = torch.tensor(train.items, device=world.device)
        self.negatives = NegativeSampler(train, num_users, world.device)

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps.
        """
        return -(-len(self.users_E) // self.batch_size)

    def epoch(self, epoch: int, skip: int, generator: Generator) -> Iterator[list[RankingBatch]]:
        """Sample the order of an epoch, and lazily the negatives of each step.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to leave out at the start; the generator must then be put where it was after them.
            generator: Source of randomness on the device, in the same state on every rank.

        Returns:
            This rank's rows of each step.
        """
        order_E = torch.randperm(len(self.users_E), generator=generator, device=self.world.device)
        return ([self.batch(rows_G, generator)] for rows_G in order_E.split(self.batch_size)[skip:])

    def batch(self, rows_G: torch.Tensor, generator: Generator) -> RankingBatch:
        """Sample negatives for interactions of the global batch, and take this rank's part.

        Args:
            rows_G: Positions among the training interactions, int64 [G].
            generator: Source of randomness on the device.

        Returns:
            This rank's rows.
        """
        negatives_G = self.negatives.sample(self.users_E[rows_G], generator)
        rows_B, negatives_B = (part.tensor_split(self.world.size)[self.world.rank] for part in (rows_G, negatives_G))
        histories = None if self.recent is None else self.recent.before(rows_B)
        own = Batch(self.users_E[rows_B], self.items_E[rows_B], negatives_B, histories)
        return RankingBatch(own, rows=len(rows_G))


def item_stream(
    config: TunesEncoder,
    dataset: Dataset,
    reader: Reader,
    world: World,
    rows: int,
    *,
    wanted: np.ndarray | None = None,
    seed: int | None = None,
) -> ItemStream:
    """Stream this rank's items.

    A pass in the order of the shards, for features, makes do with fewer loader processes where there are fewer shards: training
    on sequences reads no shards in order, and any number of processes decodes ahead there.

    Args:
        config: Settings, of which loader processes and the tolerance of damage count.
        dataset: Packed data set.
        reader: Preprocessing of the items.
        world: This rank and its peers.
        rows: Items per step on this rank.
        wanted: Items to stream, bool [I]; by default all.
        seed: Seed of the order; by default that of the shards.

    Returns:
        The stream.
    """
    workers = config.workers if seed is not None else min(config.workers, len(dataset.manifest.shards) // world.size)
    return ItemStream(
        dataset,
        world.rank,
        world.size,
        rows,
        reader,
        wanted=wanted,
        seed=seed,
        workers=workers,
        max_damaged=config.max_damaged,
    )


def rows_per_rank(batch_size: int, world: World) -> int:
    """Divide a batch over the ranks.

    Args:
        batch_size: Rows of the global batch.
        world: This rank and its peers.

    Returns:
        Rows of each rank.

    Raises:
        UserError: It cannot be divided evenly.
    """
    if batch_size % world.size:
        raise UserError(f"batch_size: got {batch_size}, expected a multiple of the {world.size} ranks")
    return batch_size // world.size
