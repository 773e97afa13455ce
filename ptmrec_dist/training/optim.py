"""Learning rates: of each part of the model, and over the steps of a run."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

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


def adamw(model: nn.Module, weight_decay: float, *parts: tuple[Iterable[nn.Parameter], float]) -> torch.optim.AdamW:
    """Make the optimiser of a model whose parts have different learning rates.

    Args:
        model: The model.
        weight_decay: Decoupled weight decay of the parameters that `decayed` names; the others have none.
        *parts: Parameters, of which those that are frozen are left out, and their learning rate; a parameter of several parts
            belongs to the last of them.

    Returns:
        The optimiser, with a group for each part that has trainable parameters, or two where some decay and some do not.
    """
    owner = {p: number for number, (parameters, _) in enumerate(parts) for p in parameters if p.requires_grad}
    matrices = decayed(model) if weight_decay else set()
    groups: list[dict[str, Any]] = [
        {"params": [p for p, part in owner.items() if part == number and (p in matrices) == decays], "lr": rate}
        | {"weight_decay": weight_decay if decays else 0.0}
        for number, (_, rate) in enumerate(parts)
        for decays in (True, False)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def decayed(model: nn.Module) -> set[nn.Parameter]:
    """Choose the parameters that weight decay is for: matrices and kernels that multiply inputs.

    Biases, norms, tables of embeddings, positions, class tokens and prompts are not among them.

    Args:
        model: A model.

    Returns:
        The parameters.
    """
    return {
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for name, parameter in module.named_parameters(recurse=False)
        if "weight" in name and parameter.dim() > 1
    }
