"""Learning rates: of each part of the model, and over the steps of a run."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ptmrec_dist.config import Schedule

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
    # A function of the step: the position is the trainer's, and a schedule with a state of its own would be a second owner.
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # what torch requires of a schedule that does not start at step 0
    factor = partial(warm_up_then_cosine, steps=steps) if kind == "cosine" else lambda step: 1.0
    return LambdaLR(optimizer, factor, last_epoch=done - 1)


def adamw(weight_decay: float, *parts: tuple[Iterable[nn.Parameter], float]) -> torch.optim.AdamW:
    """Make the optimiser of a model whose parts have different learning rates.

    Args:
        weight_decay: Decoupled weight decay.
        *parts: Parameters, of which those that are frozen are left out, and their learning rate; a parameter of several parts
            belongs to the last of them.

    Returns:
        The optimiser, with a group for each part that has trainable parameters.
    """
    owner = {p: number for number, (parameters, _) in enumerate(parts) for p in parameters if p.requires_grad}
    groups = [
        {"params": [p for p, part in owner.items() if part == number], "lr": rate}
        for number, (_, rate) in enumerate(parts)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=weight_decay)
