"""Ranks: world, device, the gather with gradient, the mean over the global batch. All of it works with one process.

One rule holds for every loss: a rank computes the rows of its own users against the items of all ranks, and the result
is a mean over the rows of all ranks. `gather_rows` and `mean_over_ranks` keep its gradient exact (design: Global batch),
so that nothing else in the project ever multiplies by a world size.

Legend: B local batch, G gathered batch, R local rows.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Where this process stands among its peers."""

    rank: int
    """This process, 0 to size - 1."""
    size: int
    """Number of processes."""
    device: torch.device
    """Device of this process."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and speaks for all."""
        return self.rank == 0


def join_world(device: str = "auto") -> World:
    """Join the ranks that a launcher (deepspeed, torchrun, Ray Train) started; alone, be a world of one.

    Collective: every rank must call this, once or more.

    Args:
        device: `cpu`, `cuda`, or `auto`: a GPU where there is one.

    Returns:
        This process's place.
    """
    use_cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(where)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(minutes=30))
    if not dist.is_initialized():
        return World(0, 1, where)
    _share_processors()
    return World(dist.get_rank(), dist.get_world_size(), where)


def barrier() -> None:
    """Wait for every rank.

    Collective: every rank must call this.
    """
    if dist.is_initialized():
        dist.barrier()


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Gather every rank's rows, in rank order, with gradient.

    Ranks may bring different numbers of rows, also none. The backward pass sums over the ranks what each of them made of
    this rank's rows.

    Collective: every rank must call this, with the same trailing shape and dtype.

    Args:
        rows_BD: This rank's rows [B, ...].

    Returns:
        [G, ...], the same on every rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_BD
    gathered: Tensor = _GatherRows.apply(rows_BD)  # type: ignore[no-untyped-call]
    return gathered


def mean_over_ranks(rows_R: Tensor, weights_R: Tensor | None = None) -> Tensor:
    """Average over the rows of all ranks, such that averaged gradients (as DDP and ZeRO make them) are exact.

    Each rank returns W / N times the sum of its own rows, N the weight of all rows and W the world size: the mean over
    ranks of these values, and of their gradients, is the mean over all rows, however unevenly they lie.

    Collective: every rank must call this.

    Args:
        rows_R: This rank's rows [R]; may be empty.
        weights_R: Weight of each row [R]; 1 by default.

    Returns:
        Scalar whose mean over the ranks is the global mean; 0 where no rank has a row.
    """
    total = rows_R.new_full((1,), float(len(rows_R))) if weights_R is None else weights_R.sum().reshape(1)
    size = 1
    if dist.is_initialized():
        dist.all_reduce(total)
        size = dist.get_world_size()
    own = rows_R.sum() if weights_R is None else (rows_R * weights_R).sum()
    return own * (size / total.clamp(min=1e-12)).squeeze(0)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over the ranks, without gradient.

    Collective: every rank must call this, with the same shape.

    Args:
        values: Any tensor.

    Returns:
        The sum, the same on every rank.
    """
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def import_deepspeed() -> object:
    """Import DeepSpeed without what it drags in and does not need here.

    Its autotuner imports MLflow (seconds), and its first use on a CPU compiles a shared-memory extension (a minute).

    Returns:
        The module.
    """
    if "deepspeed" not in sys.modules:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would guess the same, with a warning
        mlflow = sys.modules.get("mlflow")
        sys.modules["mlflow"] = None  # type: ignore[assignment]
        try:
            import deepspeed
        finally:
            if mlflow is None:
                del sys.modules["mlflow"]
            else:
                sys.modules["mlflow"] = mlflow
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return sys.modules["deepspeed"]


def _share_processors() -> None:
    """Ranks of one machine that each used all of its processors would mostly wait for each other."""
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", dist.get_world_size())))
    if "OMP_NUM_THREADS" not in os.environ and neighbours > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // neighbours))


class _GatherRows(torch.autograd.Function):
    """Pad to the longest rank, gather, cut; backward sums over ranks and takes this rank's rows."""

    @staticmethod
    def forward(ctx, rows_BD: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        world, rank = dist.get_world_size(), dist.get_rank()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows_BD.device) for _ in range(world)]
        dist.all_gather(counts, torch.tensor([len(rows_BD)], device=rows_BD.device))
        sizes = [int(count) for count in counts]
        padded = rows_BD.new_zeros((max(sizes), *rows_BD.shape[1:]))
        padded[: len(rows_BD)] = rows_BD
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        grad_GD = grad_GD.contiguous()
        dist.all_reduce(grad_GD)
        return grad_GD[ctx.start : ctx.start + ctx.size]
