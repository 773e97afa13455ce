"""What training costs: time an epoch, items a second, peak memory. Measured beside the training, never part of it."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptmrec_dist.distributed import World, sum_over_ranks


class Meter:
    """Adds up the epochs that this process trained; those before an interruption are not among them."""

    def __init__(self) -> None:
        self.items = 0
        self._epochs, self._seconds = 0, 0.0

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Time one epoch, evaluation left out.

        Yields:
            Nothing.
        """
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start
        self._epochs += 1

    def summary(self, world: World) -> dict[str, float]:
        """Say what an epoch cost.

        Collective: every rank must call this.

        Args:
            world: This rank and its peers.

        Returns:
            `seconds_per_epoch`; `items_per_second`, through the encoder of all ranks, where there were any;
            `peak_memory_mb` of the first rank, of its GPU where it has one and of its process otherwise. Empty where no
            epoch was trained.
        """
        items = float(sum_over_ranks(torch.tensor([float(self.items)], device=world.device)))
        if not self._epochs:
            return {}
        if world.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(world.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        through = {"items_per_second": items / self._seconds} if items else {}
        return {"seconds_per_epoch": self._seconds / self._epochs, **through, "peak_memory_mb": peak / 2**20}
