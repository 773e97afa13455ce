"""Reading the losses: the only moment at which a step waits for the device.

Losses stay on the device until they are read, every few steps, by one collective that also asks every rank whether it was
asked to stop. A term or a gradient that is not finite ends the run before the update of the step that reads it, before any
evaluation and before any checkpoint: between two readings it can spoil weights in memory, but nothing that is kept. Under
ZeRO 1 to 3 DeepSpeed looks at every gradient itself, and such an update is never made.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.interrupt import Interrupt


@dataclass
class Monitor:
    """Collects the losses of the steps since the last reading."""

    world: World
    """This rank and its peers."""
    every: int
    """Steps between readings."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    """Signals that this rank got."""
    losses: dict[str, float] = field(default_factory=dict)
    """Terms of the last step that was read, means over the global batch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Terms added up over the steps that were read."""
    remedy: str = "lower --optim.encoder_lr or --optim.recommender_lr"
    """What to do about a loss or a gradient that is not finite."""
    stop: bool = False
    """Whether some rank had been asked to stop at the last reading."""
    _names: list[str] = field(default_factory=list)
    _steps: list[int] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)
    _broken: list[Tensor] = field(default_factory=list)

    def note(self, step: int, losses: dict[str, Tensor], share: float) -> None:
        """Add the losses of a micro-batch to those of its step.

        Args:
            step: Number of the step, counted from 0.
            losses: Terms on this rank, scalars; their mean over ranks is that of the global batch.
            share: Share of the micro-batch in the step.
        """
        self._names = list(losses)
        values = torch.stack([loss.detach() for loss in losses.values()]) * share
        if self._steps and self._steps[-1] == step:
            self._losses[-1] = self._losses[-1] + values
        else:
            self._steps.append(step)
            self._losses.append(values)

    def update(self, engine: Engine) -> None:
        """Update the parameters, after a reading where one is due.

        Collective: every rank must call this, after it has noted the losses of the step.

        Args:
            engine: An engine after the backward pass of the step's last micro-batch.

        Raises:
            UserError: A term or a gradient was not finite on some rank. The update was not made; without ZeRO, the updates
                since the last reading may have been.
        """
        broken = (~engine.gradient_norm().isfinite()).float()
        self._broken.append(broken.to(self._losses[-1].device).reshape(1))
        step = self._steps[-1]
        if self.is_due:
            self.read()
        if not engine.step():
            self.read()  # a loss that is not finite is the better explanation
            raise self._not_finite("the gradient", step)

    @property
    def is_due(self) -> bool:
        """Whether enough steps have gathered."""
        return len(self._steps) >= self.every

    def read(self) -> None:
        """Read what has gathered into `losses` and `stop`.

        Collective: every rank must call this, after the same steps.

        Raises:
            UserError: A term or a gradient of some step was not finite on some rank; all ranks raise it together.
        """
        if not self._steps:
            return
        asked = torch.full_like(self._losses[0][:1], float(self.interrupt.requested))
        *values, requests = sum_over_ranks(torch.cat([*self._losses, *self._broken, asked])).tolist()
        self.stop = requests > 0
        steps, count = self._steps, len(self._names)
        broken_gradients = values[len(steps) * count :]
        self._steps, self._losses, self._broken = [], [], []
        for place, step in enumerate(steps):
            terms = dict(zip(self._names, values[place * count : (place + 1) * count], strict=True))
            broken = [name for name, value in terms.items() if not math.isfinite(value)]
            if broken:
                raise self._not_finite(", ".join(broken), step)
            if broken_gradients[place]:
                raise self._not_finite("the gradient", step)
            self.losses = {name: value / self.world.size for name, value in terms.items()}
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in self.losses.items()}

    def _not_finite(self, what: str, step: int) -> UserError:
        return UserError(
            f"loss: {what} is not finite at step {step + 1}; the last checkpoint is from before it; {self.remedy}"
        )
