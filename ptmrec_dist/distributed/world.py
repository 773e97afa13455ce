"""The ranks of a run: rank, world size and device of this process."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ptmrec_dist.config.common import require_device
from ptmrec_dist.errors import Fault, UserError, on_one_line
from ptmrec_dist.hardware import cores


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
            raise Fault(f"rendezvous at {address} failed ({on_one_line(error)}); try another --master_port") from error
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
            f"device: local rank {index} has no GPU of its own: PyTorch sees {visible} here; start at most {visible} ranks "
            "on this machine or use --device cpu"
        )
    return torch.device("cuda", index)


def _limit_threads() -> None:
    """Divide the machine's processors among its ranks: oversubscribed, they would mostly wait for each other."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", dist.get_world_size())))
    if "OMP_NUM_THREADS" not in os.environ and local_size > 1:
        torch.set_num_threads(max(1, cores() // local_size))
