"""Reading the losses: the only moment at which a step waits for the device.

Losses stay on the device until they are read, every few steps, by one collective that also asks every rank whether it was
asked to stop. A term or a gradient that is not finite ends the run before the update of the step that reads it, before any
evaluation and before any checkpoint: between two reads it can spoil weights in memory, but nothing that is kept. Under
ZeRO 1 to 3 DeepSpeed checks every gradient itself, and such an update is never made.

They stay in one table that exists from the first step on. A tensor for each step would survive among the large ones that every
step allocates and frees on a CPU, and the holes between such survivors are too small for the next step's: memory would grow by
the size of a gradient in every step.

Legend: S steps between reads, T terms.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.errors import UserError


class LossMonitor:
    """Collects the losses of the steps since the last read.

    Args:
        world: This rank and its peers.
        every: Steps between reads.
        remedy: What to do about a loss or a gradient that is not finite, for the message.
    """

    def __init__(self, world: World, every: int, remedy: str) -> None:
        self.world, self.every, self.remedy = world, every, remedy
        self.stop_requested = False
        self._names: list[str] = []
        self._steps: list[int] = []
        self._rows_ST = torch.zeros(0, 0)  # of each step its terms, then whether its gradient was not finite

    def add(self, step: int, terms: Mapping[str, Tensor], fraction: float) -> None:
        """Add the terms of a micro-batch to those of its step.

        Args:
            step: Number of the step, counted from 0.
            terms: Scalars on this rank; their mean over ranks is that of the global batch.
            fraction: Fraction of the micro-batch in the step.
        """
        if self._names != list(terms):
            self._names = list(terms)
            self._rows_ST = next(iter(terms.values())).new_zeros(self.every, len(terms) + 1)
        if not self._steps or self._steps[-1] != step:
            self._steps.append(step)
            self._rows_ST[len(self._steps) - 1] = 0
        values_T = torch.stack([term.detach() for term in terms.values()])
        self._rows_ST[len(self._steps) - 1, :-1] += fraction * values_T

    def add_gradient(self, norm: Tensor) -> None:
        """Add the norm of the gradient of the last step.

        Args:
            norm: Scalar on this rank.
        """
        self._rows_ST[len(self._steps) - 1, -1] = ~norm.isfinite()

    @property
    def is_due(self) -> bool:
        """Whether as many steps as `every` have been collected."""
        return len(self._steps) >= self.every

    def read(self, stop: bool = False) -> list[dict[str, float]]:
        """Read what was collected, and whether some rank was asked to stop into `stop_requested`.

        Collective: every rank must call this, after the same steps.

        Args:
            stop: Whether this rank was asked to stop.

        Returns:
            Terms of each step since the last read, means over the global batch.

        Raises:
            UserError: A term or a gradient of some step was not finite on some rank; all ranks raise it together.
        """
        if not self._steps:
            return []
        asked_1 = self._rows_ST.new_full((1,), float(stop))
        rows_ST = self._rows_ST[: len(self._steps)]
        *values, requests = sum_over_ranks(torch.cat([rows_ST.flatten(), asked_1])).tolist()
        self.stop_requested = requests > 0
        steps, self._steps = self._steps, []
        found = []
        for index, step in enumerate(steps):
            *read, broken = values[index * rows_ST.shape[1] : (index + 1) * rows_ST.shape[1]]
            terms = dict(zip(self._names, read, strict=True))
            bad = [name for name, value in terms.items() if not math.isfinite(value)]
            if bad or broken:
                raise self.not_finite(", ".join(bad) or "the gradient", step)
            found.append({name: value / self.world.size for name, value in terms.items()})
        return found

    def not_finite(self, what: str, step: int) -> UserError:
        """Make the error of a step whose numbers are not finite.

        Args:
            what: What is not finite.
            step: Number of the step, counted from 0.

        Returns:
            The error.
        """
        return UserError(
            f"loss: {what} is not finite at step {step + 1}; the last checkpoint is from before it; {self.remedy}"
        )
