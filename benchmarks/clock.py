"""Seconds and memory of work on a device: those of the CPU where it is the device, else of the GPU."""

import resource
import time

import torch


def seconds(device: torch.device) -> float:
    """Read a clock once all work of the device is done.

    Args:
        device: Where the work runs.

    Returns:
        On a CPU the CPU seconds of this process, on which other processes have little influence; on a GPU those of the clock.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    """Largest memory so far: of the process on a CPU, of the tensors on a GPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(device)
