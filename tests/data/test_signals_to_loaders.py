"""Loader processes ignore a signal that a scheduler or a terminal sends to all processes: their rank ends them, or its end."""

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.prefetching import made_ahead
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemStream
from tests.conftest import Project

_NUMBERS = list(range(40))


def _loaded(project: Project, workers: int) -> Iterator[list[int]]:
    stream = ItemStream(Dataset(project.shards), 0, 1, 4, Reader(), seed=3, workers=workers)
    return (batch.items.tolist() for batch in stream.epoch(0))


def _counted(project: Project, workers: int) -> Iterator[int]:
    return made_ahead(partial(pow, 3), _NUMBERS, workers)


@pytest.mark.parametrize("name", ["TERM", "INT"])
@pytest.mark.parametrize("read", [_loaded, _counted])
def test_nothing_is_lost(tiny_project: Project, read: object, name: str) -> None:
    expected = list(read(tiny_project, 0))  # type: ignore[operator]
    others = {process.pid for process in multiprocessing.active_children()}
    results = read(tiny_project, 2)  # type: ignore[operator]
    found = [next(results) for _ in range(3)]  # by now both have started
    loaders = {process.pid for process in multiprocessing.active_children()} - others
    assert len(loaders) == 2
    # From another process: a worker of torch ends without an error where its parent asks it to.
    subprocess.run(["kill", "-s", name, *map(str, loaders)], check=True)
    assert found + list(results) == expected


_KILLED_RANK = """
import multiprocessing, os
from ptmrec_dist.data.prefetching import made_ahead

def loader(task):
    return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    results = made_ahead(loader, range(100), 2)
    print(*{next(results) for _ in range(4)}, flush=True)
    input()
"""


@pytest.mark.slow  # three processes import torch
def test_they_end_with_a_rank_that_is_killed_also_where_another_process_forked_them(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(_KILLED_RANK)
    command = [sys.executable, str(tmp_path / "rank.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        loaders = [os.pidfd_open(int(number)) for number in rank.stdout.readline().split()]
        rank.kill()
    ended = [bool(select.select([loader], [], [], 30)[0]) for loader in loaders]
    for loader in loaders:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(loader, signal.SIGKILL)
        os.close(loader)
    assert ended == [True, True]
