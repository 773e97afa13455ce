"""What training costs: time per epoch, items per second, peak memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.training.objectives.base import Objective


class Meter:
    """Adds up the epochs that this process trained, without those before an interruption."""

    def __init__(self) -> None:
        self._items = 0
        self._epochs, self._seconds = 0.0, 0.0

    @contextmanager
    def epoch(self, objective: Objective, fraction: float) -> Iterator[None]:
        """Time one epoch, without evaluation, and count the items that its encoder reads.

        Args:
            objective: What is trained.
            fraction: How much of the epoch is left to train: less than 1 where an interrupted one resumes.

        Yields:
            Nothing.
        """
        start, read = time.perf_counter(), objective.encoded_items
        yield
        self._items += objective.encoded_items - read
        self._seconds += time.perf_counter() - start
        self._epochs += fraction

    def summary(self, world: World) -> dict[str, float]:
        """Compute what an epoch cost.

        Collective: every rank must call this.

        Args:
            world: This rank and its peers.

        Returns:
            `seconds_per_epoch`; `items_per_second`, through the encoder of all ranks, where there were any;
            `peak_memory_mb` of the first rank, of its GPU where it has one and of its process otherwise. Empty where no
            epoch was trained.
        """
        items = float(sum_over_ranks(torch.tensor([float(self._items)], device=world.device)))
        if not self._epochs:
            return {}
        if world.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(world.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        through = {"items_per_second": items / self._seconds} if items else {}
        return {"seconds_per_epoch": self._seconds / self._epochs, **through, "peak_memory_mb": peak / 2**20}
