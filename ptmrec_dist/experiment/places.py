"""Where the steps of an experiment run: in processes of this machine, or as tasks on a Ray cluster that start the same ones."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ptmrec_dist.cluster import as_task, connected
from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.lock import COVERED_BY

Place = Callable[[list[str], int, Path], int | None]
"""Runs `ptmrec` with these words on so many ranks, what it says going to a file, and gives its exit code."""


@contextmanager
def place_of(config: ExperimentConfig) -> Iterator[Place]:
    """Open the place that an experiment's steps run at.

    Args:
        config: Settings.

    Yields:
        The place.

    Raises:
        UserError: No cluster answers, or a step is larger than it.
    """
    if config.ray is None:
        yield run_here
        return
    with connected(config.ray):
        yield as_task(run_here, config.ranks, config.ray, {COVERED_BY: str(config.out.resolve())})


def run_here(words: list[str], ranks: int, log: Path) -> int | None:
    """Run a command on this machine.

    Args:
        words: The command and its options.
        ranks: Ranks that it runs on.
        log: File for what it says.

    Returns:
        Its exit code.
    """
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "ptmrec_dist"]
        with log.open("w") as stream:
            command = [sys.executable, *launcher, *words]
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=_environment(), check=False)
        return done.returncode
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ptmrec_dist.experiment.preload"])
    process = context.Process(target=_command_line, args=(words, log, _environment()))
    process.start()
    process.join()
    return process.exitcode


def _command_line(words: list[str], log: Path, environment: dict[str, str]) -> None:
    """Do what `ptmrec` does with these words, in this process, which ends with its exit code."""
    os.environ |= environment  # the process that this one was forked from may have another
    with log.open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.argv = ["ptmrec", *words]
    runpy.run_module("ptmrec_dist", run_name="__main__")


def _environment() -> dict[str, str]:
    """The package is found by children wherever this process found it."""
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}
