"""Learning rates over the steps of a run."""

import math
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from ptmrec_dist.config import Schedule, TrainsBoth
from ptmrec_dist.training.tuner import Tuner

_WARM_UP = 0.1  # fraction of the steps


class Stream(Protocol):
    """What batches come from."""

    def steps(self, epoch: int) -> int:
        """Count the batches of an epoch."""


def steps_before(stream: Stream, epoch: int, accumulation: int = 1) -> int:
    """Count the steps of the optimiser before an epoch.

    Args:
        stream: Where batches come from.
        epoch: The epoch, from 0.
        accumulation: Batches a step; the last step of an epoch may have fewer.

    Returns:
        Steps.
    """
    return sum(-(-stream.steps(earlier) // accumulation) for earlier in range(epoch))


def warm_up_then_cosine(step: int, steps: int) -> float:
    """Compute the factor of the highest learning rate: linear warm-up, then cosine decay to 0.

    Args:
        step: Number of the step, from 0.
        steps: Steps in all.

    Returns:
        Between 0 and 1; 1 once, where the rise ends.
    """
    rise = _WARM_UP * steps
    if step + 1 < rise:
        return (step + 1) / rise
    fallen = (step + 1 - rise) / (steps + 1 - rise)
    return 0.5 * (1 + math.cos(math.pi * min(fallen, 1.0)))


def schedule_of(optimizer: torch.optim.Optimizer, kind: Schedule, steps: int) -> LambdaLR:
    """Make the schedule of an optimiser.

    Args:
        optimizer: Its learning rates are the highest.
        kind: cosine: as `warm_up_then_cosine` says; constant: the highest throughout.
        steps: Steps of the optimiser in all.

    Returns:
        The schedule, to be stepped after each step of the optimiser.
    """
    return LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, steps) if kind == "cosine" else 1.0)


def skip_to(schedule: LambdaLR, done: int) -> None:
    """Put a schedule where it was before an interruption.

    Args:
        schedule: A schedule that has not been stepped yet.
        done: Steps of the optimiser that were made.
    """
    if done:
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": done - 1, "_step_count": done + 1})
        schedule.step()


def parameter_groups(tuner: Tuner, config: TrainsBoth) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate.

    Args:
        tuner: Encoder and recommender.
        config: Settings, of which the learning rates count.

    Returns:
        Groups as torch optimisers take them; none is empty.
    """
    inside = [] if tuner.encoder is None else [p for p in tuner.encoder.parameters() if p.requires_grad]
    beside = [p for p in tuner.recommender.parameters() if p.requires_grad]
    groups = [{"params": inside, "lr": config.encoder_lr}, {"params": beside, "lr": config.optim.recommender_lr}]
    return [group for group in groups if group["params"]]
