"""What this machine has for this process: the processors that it may run on, not all there are."""

import os
import time
from collections.abc import Iterator

import pytest
import torch

from ptmrec_dist.data.workers import open_workers
from ptmrec_dist.distributed import join_world
from ptmrec_dist.hardware import cores
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity, which Linux has")


@pytest.fixture
def one_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave this process one processor, of a machine that has several."""
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _process(number: int) -> int:
    time.sleep(0.1)  # the others would take the next task
    return os.getpid()


@pytest.mark.usefixtures("one_processor")
def test_packing_starts_as_many_processes_as_there_are_processors_for_it() -> None:
    assert cores() == 1
    with open_workers(None, 60, os.getpid) as pool:
        assert len(set(pool.map(_process, range(4)))) == 1


def _threads() -> int:
    os.environ.pop("OMP_NUM_THREADS", None)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.cpu_count = lambda: 8  # of the machine
    torch.set_num_threads(7)
    join_world("cpu")
    return torch.get_num_threads()


def test_ranks_divide_the_processors_that_are_theirs() -> None:
    assert run_on_ranks(2, _threads) == [1, 1]
