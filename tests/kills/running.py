"""Commands as child processes that are killed; their server has imported everything, so that a try takes about a second."""

import importlib
import json
import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from ptmrec_dist import cli
from tests.ranks import PRELOAD, free_port

_CONTEXT = multiprocessing.get_context("forkserver")
_PATIENCE = 120
"""Seconds in which processes whose parent was killed must end."""
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
"""Audit events of Python that change the file system, besides `open` for writing."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When a command is killed."""

    seconds: float | None = None
    """All of its processes, so long after its start."""
    change: int | None = None
    """The process of rank 0 alone, just before this change of the file system, counted from 1."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Exit code; -9 if it was killed."""
    seconds: float
    """How long it ran."""
    changes: int = 0
    """Changes of the file system that rank 0 made; counted only where the command came to its end."""


def start_server() -> None:
    """Start the server that commands are forked from, and wait until it has imported everything."""
    _CONTEXT.set_forkserver_preload(PRELOAD)
    process = _CONTEXT.Process(target=int)
    process.start()
    process.join()


def run(
    words: list[str], folder: Path, ranks: int = 1, setup: str = "", moment: Moment | None = None, **environment: str
) -> Ended:
    """Run a command in a folder, and kill it.

    Args:
        words: Command line.
        folder: Working directory; `log` lies beside it.
        ranks: Number of processes that run it.
        setup: Expression in a module, `module:function`, that is called in each process first.
        moment: When it is killed; None lets it end.
        **environment: More environment variables.

    Returns:
        How it ended; none of its processes is left.
    """
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if ranks > 1 else {}
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:  # a short name, for Ray's sockets
        own = {"TMPDIR": temporary, "RAY_worker_niceness": "0"}  # at 15, Ray's workers starve on a busy machine
        return _run(words, folder, ranks, setup, moment, environment | world | own)


def _run(
    words: list[str], folder: Path, ranks: int, setup: str, moment: Moment | None, environment: Mapping[str, str]
) -> Ended:
    change = moment.change if moment else None
    processes = []
    begun = time.monotonic()
    for rank in range(ranks):
        own = {**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})}
        address = forkserver._forkserver._forkserver_address
        process = _CONTEXT.Process(target=_command, args=(words, folder, own, setup, change, address))
        process.start()
        processes.append(process)
    server = psutil.Process(psutil.Process(processes[0].pid).ppid())
    if moment and moment.seconds is not None:
        processes[0].join(moment.seconds)
        if processes[0].is_alive():
            _kill_all(processes, server)
    return _ended(processes, server, begun, folder)


def log_of(folder: Path) -> Path:
    """The file for what commands in a folder print."""
    return folder.with_name("log")


def _ended(processes: list[BaseProcess], server: psutil.Process, begun: float, folder: Path) -> Ended:
    first = processes[0]
    first.join()
    seconds = time.monotonic() - begun
    _, alive = psutil.wait_procs(_others(processes, server), timeout=_PATIENCE)  # they notice by themselves
    assert not alive, (alive, log_of(folder).read_text()[-2000:])
    for process in processes[1:]:
        process.join()
    count = folder.with_name("changes")
    return Ended(first.exitcode, seconds, json.loads(count.read_text()) if first.exitcode == 0 else 0)


def _others(processes: list[BaseProcess], server: psutil.Process) -> list[psutil.Process]:
    """All that a command has started: its process groups, and those that the server forked for it."""
    groups = {process.pid for process in processes}
    found = {one for one in psutil.process_iter() if _group(one.pid) in groups}
    return [one for one in found | set(server.children(recursive=True)) if one.pid not in groups]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _kill_all(processes: list[BaseProcess], server: psutil.Process) -> None:
    for pid in [*(process.pid for process in processes), *(one.pid for one in _others(processes, server))]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _command(
    words: list[str], folder: Path, environment: Mapping[str, str], setup: str, change: int | None, server: str
) -> None:
    """Run a command in this process and exit with its code."""
    forkserver._forkserver._forkserver_address = server  # what it forks has everything imported, too
    forkserver._forkserver.ensure_running = lambda: None
    os.setpgrp()
    output = os.open(log_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    tempfile.tempdir = None  # another than the server's
    os.environ |= environment
    os.chdir(folder)
    if setup:
        module, _, function = setup.partition(":")
        getattr(importlib.import_module(module), function)()
    counter = _Changes(folder, change if os.environ.get("RANK", "0") == "0" else None)
    sys.addaudithook(counter)
    code = cli.run(words[0], words[1:])
    counter.folder = ""
    if os.environ.get("RANK", "0") == "0":
        folder.with_name("changes").write_text(json.dumps(counter.seen))
    os._exit(code)


class _Changes:
    """Counts the changes of a folder that this process makes, and may kill it before one of them."""

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.seen = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES and event != "open":
            return
        if not self.folder or not self._is_inside(arguments) or (event == "open" and not arguments[2] & _WRITES):
            return
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_inside(self, arguments: tuple[Any, ...]) -> bool:
        """Whether a path lies in the folder; relative ones are of `rmtree`, which removes by an open folder."""
        path = arguments[0]
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        return isinstance(path, str) and (path.startswith(self.folder) or not os.path.isabs(path))
