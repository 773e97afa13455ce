"""Batches of training sequences, for sequence recommenders.

Shape suffixes: G distinct items of a step, B sequences of the global batch, V sequences of this rank, L items that are read, R
positions of this rank with a target, N own items of the sequences' users, I items, S sequences.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator

from ptmrec_dist.config.common import require
from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.data.prefetching import made_ahead
from ptmrec_dist.data.random_access import ItemFiles, Lost
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch, encoded_by


def require_negatives(config: NextItemConfig, sequences: TrainingSequences, batch_size: int, world: World) -> None:
    """Refuse steps in which no position has a negative, for the loss against the other items of the step.

    What a user took is no negative of theirs: a step of one user's sequences has a loss of exactly 0.

    Args:
        config: Settings of the loss.
        sequences: What is trained on.
        batch_size: Targets of the global batch, on average.
        world: This rank and its peers.

    Raises:
        UserError: All sequences are of one user, or those whose items are compared in a step are one at most.
    """
    if config.loss != "inbatch":
        return
    several = bool((sequences.users != sequences.users[0]).any())
    require(
        several, "shards", "training sequences of 1 user", "those of 2 or more, whose items are each other's negatives"
    )
    sharing = world.size if config.negatives == "rank" else 1
    enough = math.ceil(2 * sharing * sequences.num_targets / len(sequences.users))
    where = "a rank's step" if config.negatives == "rank" else "a step"
    expected = (
        f"more, such as {enough}: {where} would have 1 sequence, whose own items are no negatives, and a loss of 0"
    )
    require(sequences.per_step(batch_size) > sharing, "batch_size", batch_size, expected)


class SequenceBatches:
    """Sequences in random order, each once an epoch, with all their positions.

    Batches are made on the CPU, where the number of a step's distinct items costs no synchronisation. Every rank has the
    order of all sequences, knows the items of the whole step, and takes its part of the sequences.

    Args:
        sequences: What is trained on.
        batch_size: Targets of the global batch, on average.
        world: This rank and its peers.
        negatives: `world`: a step's items are those of all ranks; `rank`: those of this rank.
        files: Images and texts of the items, where an encoder reads them; by default none are read.
        workers: Processes that read them ahead of the steps; 0 reads them in this process.
    """

    accumulation = 1
    depends_on = "the users"
    layout = ""
    # GPUs of different models may generate different numbers from one seed, and ranks must agree.
    generator_device = torch.device("cpu")

    def __init__(
        self,
        sequences: TrainingSequences,
        batch_size: int,
        world: World,
        negatives: str = NextItemConfig.negatives,
        files: ItemFiles | None = None,
        workers: int = 0,
    ) -> None:
        self.sequences, self.world, self.negatives = sequences, world, negatives
        self.files, self.workers = files, workers if files is not None else 0
        self.sequences_per_step = sequences.per_step(batch_size)

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps.
        """
        return -(-len(self.sequences.users) // self.sequences_per_step)

    def epoch(self, epoch: int, skip: int, generator: Generator) -> Iterator[list[SequenceBatch]]:
        """Sample the order of the sequences.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to leave out at the start.
            generator: Source of randomness, in the same state on every rank.

        Returns:
            This rank's sequences of each step.
        """
        order_S = torch.randperm(len(self.sequences.users), generator=generator)
        steps = [sequences_B.numpy() for sequences_B in order_S.split(self.sequences_per_step)[skip:]]
        return ([self._counted(*made)] for made in made_ahead(self._made, steps, self.workers))

    def batch(self, sequences_B: np.ndarray) -> SequenceBatch:
        """Look up sequences of the global batch, and take this rank's part.

        Args:
            sequences_B: Which ones, int64 [B].

        Returns:
            This rank's sequences.

        Raises:
            Fault: More items are unreadable than `max_damaged` allows.
        """
        return self._counted(*self._made(sequences_B))

    def _counted(self, batch: SequenceBatch, lost: Lost) -> SequenceBatch:
        if self.files is not None:
            self.files.count(lost)
        return batch

    def _made(self, sequences_B: np.ndarray) -> tuple[SequenceBatch, Lost]:
        """The part of this rank, and the items that could not be read."""
        all_windows, users_B = self.sequences.of(sequences_B), self.sequences.users[sequences_B]
        rows, scale = int(all_windows.mask[:, :-1].sum()), float(self.world.size)
        own = np.array_split(np.arange(len(users_B)), self.world.size)[self.world.rank]
        if not len(own):  # fewer sequences than ranks: one that does not count, as no layer takes an empty batch
            own, scale = np.zeros(1, dtype=np.int64), 0.0
        windows = PaddedHistories(all_windows.items[own], all_windows.mask[own])
        shared = windows if self.negatives == "rank" else all_windows
        items_G, counts_G = shared.items[shared.mask].unique(return_counts=True)
        batch = self._batch(users_B[own], windows, items_G, counts_G, scale / rows, len(users_B))
        if self.files is None:
            return batch, {}
        encoded = items_G if self.negatives == "rank" else encoded_by(items_G, self.world.rank, self.world.size)
        content, lost = self.files.decode(encoded.numpy())
        return batch._replace(content=content), lost

    def _batch(
        self,
        users_V: np.ndarray,
        windows: PaddedHistories,
        items_G: torch.Tensor,
        counts_G: torch.Tensor,
        weight: float,
        num_sequences: int,
    ) -> SequenceBatch:
        """Express items as columns among the distinct ones."""
        columns_VL = torch.searchsorted(items_G, windows.items.where(windows.mask, items_G[0]))
        (rows_R,) = torch.nonzero(windows.mask[:, :-1].flatten(), as_tuple=True)
        taken = self.sequences.histories.of(users_V)
        taken_N = torch.from_numpy(taken.items)
        found_N = torch.searchsorted(items_G, taken_N).clamp(max=len(items_G) - 1)
        there_N = items_G[found_N] == taken_N
        return SequenceBatch(
            users=torch.from_numpy(users_V),
            inputs=columns_VL[:, :-1],
            mask=windows.mask[:, :-1],
            rows=rows_R,
            targets=columns_VL[:, 1:].flatten()[rows_R],
            items=items_G,
            counts=counts_G,
            taken=torch.stack([torch.from_numpy(taken.users)[there_N], found_N[there_N]]),
            weight=weight,
            num_sequences=num_sequences,
        )
