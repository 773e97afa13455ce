"""Ranks: world, device, gather with gradient, mean over the global batch. Everything works with one process too.

One rule holds for every loss: a rank computes the rows of its own users against the items of all ranks, and the result
is a mean over the rows of all ranks. `gather_rows` and `mean_over_ranks` keep its gradient exact, so that nothing else in the
project multiplies by the world size.

Legend: B local batch, S rows that each rank contributes to a gather, G gathered batch (W * S), R local rows, W ranks.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ptmrec_dist.config.common import require_device
from ptmrec_dist.errors import Fault, UserError


@dataclass(frozen=True)
class World:
    """Rank of this process, world size and device."""

    rank: int
    """Rank of this process, 0 to size - 1."""
    size: int
    """Number of processes."""
    device: torch.device
    """Device of this process."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and logs for all."""
        return self.rank == 0


def join_world(device: str = "auto", timeout: float = 600.0) -> World:
    """Join the ranks started by a launcher (deepspeed, torchrun, Ray Train); without one, return a world of size 1.

    Collective: every rank must call this, once or more.

    Args:
        device: `cpu`, `cuda`, `cuda:N` for one process only, or `auto`: a GPU where there is one. Each of several ranks uses
            the GPU of its LOCAL_RANK.
        timeout: Seconds that a collective waits for the other ranks before it fails.

    Returns:
        Rank, world size and device of this process.

    Raises:
        UserError: A GPU that is not visible to this process, or one GPU for several ranks.
        Fault: The rendezvous failed, or this machine has fewer GPUs than ranks.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    where = _device_of_rank(device, size)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        try:
            backend = "nccl" if where.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except dist.DistError as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = " ".join(str(error).split())
            raise Fault(f"rendezvous at {address} failed ({reason}); try another --master_port") from error
    if not dist.is_initialized():
        return World(0, 1, where)
    _limit_threads()
    return World(dist.get_rank(), dist.get_world_size(), where)


def _device_of_rank(device: str, size: int) -> torch.device:
    """Select the device of this process."""
    require_device(device)
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not visible:
        raise UserError(f"device: got {device}, but PyTorch sees no GPU here; expected cpu or auto")
    number = device.partition(":")[2]
    if number and size > 1:
        raise UserError(
            f"device: got {device} for {size} ranks, but every rank uses a GPU of its own; use --device cuda, and choose GPUs "
            "by CUDA_VISIBLE_DEVICES or `deepspeed --include`"
        )
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= visible and number:
        raise UserError(f"device: got {device}, expected cuda:0 to cuda:{visible - 1}, all that PyTorch sees here")
    if index >= visible:
        raise Fault(
            f"device: local rank {index} has no GPU of its own, for PyTorch sees {visible} here; start at most {visible} ranks "
            "on this machine or use --device cpu"
        )
    return torch.device("cuda", index)


def barrier() -> None:
    """Wait for every rank.

    Collective: every rank must call this.
    """
    if dist.is_initialized():
        dist.barrier()


def gather_rows(rows_BD: Tensor, size: int | None = None, filler: int = 0) -> Tensor:
    """Gather every rank's rows, in rank order, with gradient.

    Ranks may have different numbers of rows, also none. With `size` each rank's rows are padded to it: shapes are known
    beforehand, and no counts are exchanged; without it counts are exchanged first and nothing is padded. The backward pass
    sums the gradients of this rank's rows over all ranks.

    Collective: every rank must call this, with the same size, trailing shape and dtype.

    Args:
        rows_BD: This rank's rows [B, ...].
        size: Rows that each rank contributes S, at least B; by default as many as it has.
        filler: Value of the padding rows.

    Returns:
        [W * S, ...], or [G, ...] without `size`; the same on every rank.
    """
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    if size is not None:
        filled_SD = torch.cat([rows_BD, rows_BD.new_full((size - len(rows_BD), *rows_BD.shape[1:]), filler)])
        return filled_SD if alone else _gather_equal(filled_SD)
    if alone:
        return rows_BD
    counts = _gather_equal(torch.tensor([len(rows_BD)], device=rows_BD.device)).tolist()
    padded = gather_rows(rows_BD, max(counts)).split(max(counts) or 1)
    return torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)])


def mean_over_ranks(rows_R: Tensor, weights_R: Tensor | None = None) -> Tensor:
    """Average over the rows of all ranks, such that averaged gradients (as DDP and ZeRO make them) are exact.

    Each rank returns W / N times the sum of its own rows, N the weight of all rows and W the world size: the mean over
    ranks of these values, and of their gradients, is the mean over all rows, however unevenly they are distributed.

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
    """Import DeepSpeed without dependencies that are not needed here.

    Its autotuner imports MLflow (seconds), and its first use on a CPU compiles a shared-memory extension (a minute).

    Returns:
        The module.
    """
    if "deepspeed" not in sys.modules:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed's own default, without its warning
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


def _limit_threads() -> None:
    """Divide the machine's processors among its ranks: oversubscribed, they would mostly wait for each other."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", dist.get_world_size())))
    if "OMP_NUM_THREADS" not in os.environ and local_size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))


def _gather_equal(rows_SD: Tensor) -> Tensor:
    gathered_GD: Tensor = _GatherRows.apply(rows_SD)  # type: ignore[no-untyped-call]
    return gathered_GD


class _GatherRows(torch.autograd.Function):
    """Gather tensors of one shape; backward sums over ranks and takes this rank's rows."""

    @staticmethod
    def forward(ctx, rows_SD: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows_SD = rows_SD.contiguous()
        rows_GD = rows_SD.new_empty((dist.get_world_size() * len(rows_SD), *rows_SD.shape[1:]))
        dist.all_gather_into_tensor(rows_GD, rows_SD)
        return rows_GD

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        grad_SD = grad_GD.new_empty((len(grad_GD) // dist.get_world_size(), *grad_GD.shape[1:]))
        dist.reduce_scatter_tensor(grad_SD, grad_GD.contiguous())
        return grad_SD
