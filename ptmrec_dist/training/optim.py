"""Learning rates: of each part of the model, and over the steps of a run."""

import math
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ptmrec_dist.config import Schedule, TrainsBoth
from ptmrec_dist.training.objectives.transfer import Transfer

_WARM_UP = 0.1  # fraction of the steps


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


def schedule_of(optimizer: torch.optim.Optimizer, kind: Schedule, steps: int, done: int = 0) -> LambdaLR:
    """Make the schedule of an optimiser.

    Args:
        optimizer: Its learning rates are the highest.
        kind: cosine: as in `warm_up_then_cosine`; constant: the highest throughout.
        steps: Steps of the optimiser in all.
        done: Steps that were done before an interruption.

    Returns:
        The schedule, to be stepped after each step of the optimiser.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # what torch requires of a schedule that does not start at step 0
    factor = partial(warm_up_then_cosine, steps=steps) if kind == "cosine" else lambda step: 1.0
    return LambdaLR(optimizer, factor, last_epoch=done - 1)


def parameter_groups(objective: Transfer, config: TrainsBoth) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate.

    Args:
        objective: Encoder and recommender.
        config: Settings, of which the learning rates count.

    Returns:
        Groups as torch optimisers take them; none is empty.
    """
    inside = [] if objective.encoder is None else [p for p in objective.encoder.parameters() if p.requires_grad]
    beside = [p for p in objective.recommender.parameters() if p.requires_grad]
    groups = [{"params": inside, "lr": config.encoder_lr}, {"params": beside, "lr": config.optim.recommender_lr}]
    return [group for group in groups if group["params"]]
