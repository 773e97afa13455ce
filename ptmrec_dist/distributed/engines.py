"""The choice of an engine: DeepSpeed is imported only where several ranks hold the same parameters."""

import torch
from torch import nn

from ptmrec_dist.distributed.engine import Engine, OneProcess
from ptmrec_dist.distributed.rows import RowEngine, row_tables
from ptmrec_dist.distributed.world import World


def make_engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    *,
    zero_stage: int = 0,
    accumulation: int = 1,
    grad_clip: float = 0.0,
) -> Engine:
    """Make the engine of a module: `OneProcess`, or where there are several ranks `RowEngine` of row tables, else DeepSpeed's.

    Collective: every rank must call this.

    Args:
        module: What is called and trained.
        optimizer: Its Adam or AdamW.
        world: Rank, world size and device.
        zero_stage: What DeepSpeed divides over the ranks; one process has nothing to divide.
        accumulation: Largest number of micro-batches per step.
        grad_clip: Largest norm of the gradient, to which it is clipped; 0 turns clipping off.

    Returns:
        The engine.
    """
    if world.size == 1:
        return OneProcess(module, optimizer, grad_clip)
    if row_tables(module):
        return RowEngine(module, optimizer, world, grad_clip)
    from ptmrec_dist.distributed.zero import DeepSpeedEngine

    return DeepSpeedEngine(module, optimizer, world, zero_stage, accumulation, grad_clip)
