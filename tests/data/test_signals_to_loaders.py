"""Loader processes ignore a signal that a scheduler or a terminal sends to all processes: their rank ends them."""

import multiprocessing
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from ptmrec_dist.data.ahead import made_ahead
from ptmrec_dist.data.dataset import Dataset
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
