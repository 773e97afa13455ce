"""Executors of an experiment's steps: processes of this machine, or Ray tasks that start the same processes."""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.distributed.cluster import as_task, connected
from ptmrec_dist.lock import COVERED_BY
from ptmrec_dist.processes import end_with_parent

Executor = Callable[[list[str], int, Path], int | None]
"""Runs `ptmrec` with given arguments on a number of ranks, with output to a log file, and returns its exit code."""

_PRELOAD = ["mlflow.store.tracking.sqlalchemy_store", "ptmrec_dist.experiment.preload"]
"""Modules that the fork server of the runs loads; MLflow by its name, since this room does not know it."""
_CHILDREN = threading.Lock()
"""Held while `multiprocessing` may ask its children for their exit codes: of two threads that ask at once, one gets 255."""


@contextmanager
def open_executor(config: ExperimentConfig) -> Iterator[Executor]:
    """Open the executor of an experiment's steps.

    Args:
        config: Settings.

    Yields:
        The executor.

    Raises:
        UserError: No cluster responds, or a step is larger than the cluster.
    """
    if config.ray is None:
        yield run_locally
        return
    with connected(config.ray):
        yield as_task(run_locally, config.ranks, config.ray, {COVERED_BY: str(config.out.resolve())})


def run_locally(arguments: list[str], ranks: int, log: Path) -> int | None:
    """Run a command on this machine.

    Args:
        arguments: The command and its options.
        ranks: Number of ranks.
        log: File for its output.

    Returns:
        Its exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    process = context.Process(target=_command_line, args=(arguments, ranks, log, _environment()))
    with _CHILDREN:
        process.start()
    wait([process.sentinel])
    with _CHILDREN:
        process.join()
    return process.exitcode


def end_running() -> None:
    """Ask the commands that `run_locally` runs in other threads to save what they have and to end."""
    with _CHILDREN:
        for process in multiprocessing.active_children():
            process.terminate()


def _command_line(arguments: list[str], ranks: int, log: Path, environment: dict[str, str]) -> None:
    """Run `ptmrec` with these arguments in this process, or its launcher, and exit with the exit code."""
    os.setpgrp()  # what ends the experiment reaches this process once, by `end_running`: a second signal would cost it its step
    # An experiment's step ends with it, or the same command, run again, would find its output in use.
    end_with_parent(signal.SIGTERM if ranks > 1 else signal.SIGKILL)  # the launcher first ends the ranks
    os.environ |= environment  # the fork server may have another
    # Processes of its own are started as from a shell; locks made for a fork server would outlive a kill, with a warning.
    multiprocessing.set_start_method(None, force=True)
    with log.open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    module, words = "ptmrec_dist", arguments
    if ranks > 1:
        words = ["--standalone", f"--nproc_per_node={ranks}", "-m", module, *words]
        module = "torch.distributed.run"
    sys.argv = [module, *words]
    # Imported where the parent is the script `ptmrec`; runpy would warn of it.
    sys.modules.pop("ptmrec_dist.__main__", None)
    runpy.run_module(module, run_name="__main__")


def _environment() -> dict[str, str]:
    """Environment in which child processes import the package from where this process did."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}
