"""Run a function on several ranks in processes of this machine."""

import multiprocessing
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ptmrec_dist import cli

PRELOAD = ["tests.preload"]
"""What the server that ranks are forked from loads."""

# Seconds; a busy machine needs far more than a quiet one.
_PATIENCE = 400


def run_on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on every rank of a gloo world; give what each returned, in rank order."""
    results, ranks = _start(world_size, function, arguments)
    found: dict[int, Any] = {}
    try:
        while len(found) < world_size:
            rank, value, failure = results.get(timeout=_PATIENCE)
            if failure:  # the other ranks may wait for this one indefinitely
                raise AssertionError(f"rank {rank}: {failure}")
            found[rank] = value
    finally:
        for process in ranks:
            if len(found) < world_size:
                process.terminate()
            process.join()
    return [found[rank] for rank in range(world_size)]


def exit_codes_on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Call a function that does not return on every rank; give how each process ended."""
    _, ranks = _start(world_size, function, arguments)
    for process in ranks:
        process.join(timeout=_PATIENCE)
        process.kill()
        process.join()
    return [process.exitcode for process in ranks]


def command_on_rank(command: str, arguments: list[str], logs: Path) -> None:
    """Run a command as this rank and exit with its code; what it says on standard error goes to a file `rankN`."""
    with (logs / f"rank{os.environ['RANK']}").open("w", buffering=1) as sys.stderr:
        code = cli.run(command, arguments)
    sys.stderr = sys.__stderr__
    sys.exit(code)


def _start(world_size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    # A process forked from one that has initialised CUDA, as DeepSpeed's import does, cannot use it.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(PRELOAD)
    results, port = context.Queue(), free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, warnings.filters, results, function, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return results, ranks


def _rank(
    rank: int, size: int, port: int, filters: Any, results: Any, function: Callable[..., Any], arguments: Any
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    cli._GRACE = 0.0  # no launcher ends the first of them
    warnings.filters[:] = filters  # those of pytest's process
    try:
        results.put((rank, _plain(function(*arguments)), ""))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _plain(value: Any) -> Any:
    """Arrays instead of tensors: a queue shares a tensor's memory, which ends with its process."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
