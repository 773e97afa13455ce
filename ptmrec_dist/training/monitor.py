"""Reading the losses: the only moment at which a step waits for the device.

Losses stay on the device until they are read, every few steps, by one collective that also asks every rank whether it was
asked to stop. A term or a gradient that is not finite ends the run before the update of the step that reads it, before any
evaluation and before any checkpoint: between two reads it can spoil weights in memory, but nothing that is kept. Under
ZeRO 1 to 3 DeepSpeed checks every gradient itself, and such an update is never made.
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
        self._losses: list[Tensor] = []
        self._broken: list[Tensor] = []

    def add(self, step: int, terms: Mapping[str, Tensor], fraction: float) -> None:
        """Add the terms of a micro-batch to those of its step.

        Args:
            step: Number of the step, counted from 0.
            terms: Scalars on this rank; their mean over ranks is that of the global batch.
            fraction: Fraction of the micro-batch in the step.
        """
        self._names = list(terms)
        values = torch.stack([term.detach() for term in terms.values()]) * fraction
        if self._steps and self._steps[-1] == step:
            self._losses[-1] = self._losses[-1] + values
        else:
            self._steps.append(step)
            self._losses.append(values)

    def add_gradient(self, norm: Tensor) -> None:
        """Add the norm of the gradient of the last step.

        Args:
            norm: Scalar on this rank.
        """
        self._broken.append((~norm.isfinite()).to(self._losses[-1]).reshape(1))

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
        asked = torch.full_like(self._losses[0][:1], float(stop))
        *values, requests = sum_over_ranks(torch.cat([*self._losses, *self._broken, asked])).tolist()
        self.stop_requested = requests > 0
        steps, count = self._steps, len(self._names)
        broken = values[len(steps) * count :]
        self._steps, self._losses, self._broken = [], [], []
        found = []
        for index, step in enumerate(steps):
            terms = dict(zip(self._names, values[index * count : (index + 1) * count], strict=True))
            bad = [name for name, value in terms.items() if not math.isfinite(value)]
            if bad or broken[index]:
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
