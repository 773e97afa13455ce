"""What this machine has for this process: the processors that it may run on, not all there are."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ptmrec_dist.data.packing.workers import open_workers
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


def _write_version_1(folder: Path, quota: str, period: str) -> None:
    (folder / "cpu").mkdir()
    (folder / "cpu/cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu/cpu.cfs_period_us").write_text(period)


@pytest.fixture
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        (200_000, 100_000, 2),
        (150_000, 100_000, 2),
        (10_000, 100_000, 1),
        (25_000, 50_000, 1),
        (800_001, 100_000, 8),
        (6_400_000, 100_000, 8),
    ],
)
def test_a_container_s_share_of_time_counts_as_whole_processors(
    quota: int, period: int, expected: int, tmp_path: Path
) -> None:
    (tmp_path / "2").mkdir()
    (tmp_path / "2/cpu.max").write_text(f"{quota} {period}\n")
    (tmp_path / "1").mkdir()
    _write_version_1(tmp_path / "1", f"{quota}\n", f"{period}\n")
    assert [cores(tmp_path / version) for version in "21"] == [expected, expected]


@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    "content", ["max 100000\n", "", "\n", "100000", "1 2 3", "many 100000", "0 100000", "100000 0"]
)
def test_what_says_no_quota_limits_nothing(content: str, tmp_path: Path) -> None:
    assert cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text(content)
    assert cores(tmp_path) == 8


@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("100000", ""), ("", "100000"), ("100000", "0")])
def test_what_says_no_quota_in_version_1_limits_nothing(quota: str, period: str, tmp_path: Path) -> None:
    _write_version_1(tmp_path, quota, period)
    assert cores(tmp_path) == 8


def _threads() -> int:
    os.environ.pop("OMP_NUM_THREADS", None)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.cpu_count = lambda: 8  # of the machine
    torch.set_num_threads(7)
    join_world("cpu")
    return torch.get_num_threads()


def test_ranks_divide_the_processors_that_are_theirs() -> None:
    assert run_on_ranks(2, _threads) == [1, 1]
