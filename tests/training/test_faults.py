"""What happens when one rank fails: the others stop soon, report rank and step, and the run can be resumed."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmrec_dist import cli
from tests.conftest import Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks
from tests.training.steps import before_each_step

pytestmark = pytest.mark.slow


def _arguments(project: Project, out: Path, *more: str) -> list[str]:
    return [
        *("--stage1", str(project.stage1), "--out", str(out), "--epochs", "2", "--batch_size", "12"),
        *("--checkpoint_every", "2", "--device", "cpu", "--tracking.enabled", "false", *more),
    ]


def _stage2(arguments: list[str], logs: Path, sabotage: Callable[[int, int], None] | None = None) -> None:
    """The command on a rank; `sabotage(rank, step)` comes before each step."""
    if sabotage is not None:
        before_each_step(lambda trainer, step: sabotage(trainer.world.rank, step))
    command_on_rank("stage2", arguments, logs)


def _killed(rank: int, step: int) -> None:
    if rank == 1 and step == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def _hanging(rank: int, step: int) -> None:
    if rank == 1 and step == 3:
        threading.Event().wait()


def _without_a_shard(rank: int, step: int) -> None:
    from ptmrec_dist.errors import Fault

    if rank == 1 and step == 3:
        raise Fault("shards: 7 of 30 items cannot be read")


@pytest.mark.parametrize(
    ("sabotage", "timeout", "codes", "message"),
    [
        (
            _killed,
            "30",
            [3, -9],
            "rank 0 lost contact with the other ranks at step 4: rank 1 sends no heartbeat (last one at step",
        ),
        (
            _hanging,
            "3",
            [3, 3],
            "rank 0 lost contact with the other ranks at step 4: rank 1 is alive at step 4 but does not",
        ),
        (
            _without_a_shard,
            "30",
            [3, 3],
            "rank 0 lost contact with the other ranks at step 4: rank 1 stopped at step 4: shards: 7",
        ),
    ],
)
def test_a_lost_rank_ends_the_others_with_its_name_and_the_run_goes_on(
    tiny_project: Project, tmp_path: Path, sabotage: Any, timeout: str, codes: list[int], message: str
) -> None:
    arguments = _arguments(tiny_project, tmp_path / "run", "--timeout", timeout)
    assert exit_codes_on_ranks(2, _stage2, arguments, tmp_path, sabotage) == codes
    log = (tmp_path / "rank0").read_text()
    assert message in log
    assert "Traceback" not in log
    if sabotage is _hanging:
        assert "rank 1: error: step 4 took longer than 3 seconds (--timeout)" in (tmp_path / "rank1").read_text()
    if sabotage is _killed:
        assert exit_codes_on_ranks(2, _stage2, arguments, tmp_path) == [0, 0]
        assert (tmp_path / "run" / "metrics.json").is_file()


def _stage1_until_step_3(arguments: list[str], logs: Path) -> None:
    before_each_step(lambda trainer, step: _killed(trainer.world.rank, step))
    command_on_rank("stage1", arguments, logs)


def test_a_lost_rank_of_stage_1_ends_the_other_with_its_name_and_the_run_goes_on(
    tiny_project: Project, tmp_path: Path
) -> None:
    arguments = [
        *(
            "--shards",
            str(tiny_project.shards),
            "--features",
            str(tiny_project.features),
            "--out",
            str(tmp_path / "run"),
        ),
        *("--recommender", "vbpr", "--epochs", "2", "--batch_size", "128", "--timeout", "30", "--device", "cpu"),
        *("--tracking.enabled", "false"),
    ]
    assert exit_codes_on_ranks(2, _stage1_until_step_3, arguments, tmp_path) == [3, -9]
    log = (tmp_path / "rank0").read_text()
    assert "rank 0 lost contact with the other ranks at step 4: rank 1 sends no heartbeat (last one at step" in log
    assert "Traceback" not in log
    assert exit_codes_on_ranks(2, command_on_rank, "stage1", arguments, tmp_path) == [0, 0]
    assert (tmp_path / "run" / "metrics.json").is_file()


def _spoilt_on_rank_1(arguments: list[str], logs: Path) -> None:
    from ptmrec_dist.training.objectives.transfer import Transfer

    transfer = Transfer._transfer

    def spoilt(self: Transfer, *inputs: Any) -> torch.Tensor:
        spoilt.calls += 1  # type: ignore[attr-defined]
        factor = float("nan") if os.environ["RANK"] == "1" and spoilt.calls == 6 else 1.0  # type: ignore[attr-defined]
        return transfer(self, *inputs) * factor

    spoilt.calls = 0  # type: ignore[attr-defined]
    Transfer._transfer = spoilt  # type: ignore[method-assign]
    _stage2(arguments, logs)


@pytest.mark.parametrize("check_every", ["1", "4"])
def test_a_loss_that_is_not_finite_stops_all_ranks_and_no_checkpoint_has_seen_it(
    tiny_project: Project, tmp_path: Path, check_every: str
) -> None:
    """Step 6 is spoilt on rank 1; checkpoints come every two steps."""
    arguments = _arguments(tiny_project, tmp_path / "run", "--check_every", check_every)
    assert exit_codes_on_ranks(2, _spoilt_on_rank_1, arguments, tmp_path) == [2, 2]
    assert "error: loss: kt is not finite at step 6" in (tmp_path / "rank0").read_text()
    assert not (tmp_path / "run" / "metrics.json").exists()
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1] == "step-000000005" or saved[-1] == "step-000000004"
    assert exit_codes_on_ranks(2, _stage2, arguments, tmp_path) == [0, 0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("keep", "what"), [("best", "checkpoint"), ("last", "the weights so far")])
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(
    tiny_project: Project, tmp_path: Path, small_disk: Path, keep: str, what: str
) -> None:
    ballast = small_disk / "ballast"
    arguments = _arguments(tiny_project, small_disk / "run", "--keep", keep, "--refresh_every", "1")
    assert exit_codes_on_ranks(2, _stage2, arguments, tmp_path, _Filling(ballast)) == [3, 3]
    log = (tmp_path / "rank0").read_text()
    assert f"cannot write {what}" in log
    assert "No space left" in log
    left = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert f"{left[-1]} is still there" in log or "the last checkpoint is still there" in log
    ballast.unlink()
    assert exit_codes_on_ranks(2, _stage2, arguments, tmp_path) == [0, 0]
    assert (small_disk / "run" / "metrics.json").is_file()


class _Filling:
    """Fills the disk up before the third step."""

    def __init__(self, ballast: Path) -> None:
        self.ballast = ballast

    def __call__(self, rank: int, step: int) -> None:
        if rank == 0 and step == 3:
            free = shutil.disk_usage(self.ballast.parent).free
            self.ballast.write_bytes(bytes(max(0, free - 8_192)))


@pytest.mark.parametrize(("before", "after", "batching"), [(1, 2, "item"), (2, 3, "item"), (3, 1, "interaction")])
def test_another_number_of_ranks_goes_on_with_weights_and_moments(
    tiny_project: Project, tmp_path: Path, before: int, after: int, batching: str
) -> None:
    arguments = _arguments(tiny_project, tmp_path / "run", "--batching", batching, "--zero.stage", "2")
    exit_codes_on_ranks(before, _stage2, arguments, tmp_path, _all_killed)
    said = run_on_ranks(after, _said, arguments)[0]
    assert (
        f"resuming at step 2 (epoch 1, step {1 if batching == 'item' else 3}) on {after} ranks instead of {before}"
        in said
    )
    assert "weights and Adam's moments carry over" in said
    assert ("the epoch starts again" in said) == (batching == "item")
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text()))


def _all_killed(rank: int, step: int) -> None:
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def _said(arguments: list[str]) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.run("stage2", arguments) == 0
    return out.getvalue()
