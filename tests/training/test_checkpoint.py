"""Checkpoints: whole or not there, the newest whole one counts, the oldest go."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from ptmrec_dist.distributed import World
from ptmrec_dist.errors import Fault
from ptmrec_dist.training.checkpoint import Checkpoints, TrainState
from ptmrec_dist.training.early_stopping import EarlyStopping

ALONE = World(0, 1, torch.device("cpu"))


def _state(step: int) -> TrainState:
    stopping = EarlyStopping(patience=3, kept=0.1 + 0.2, kept_epoch=step, stale=1)
    return TrainState(epoch=step, step=2, total_steps=step, stopping=stopping, history=[{"epoch": 1, "loss": 1 / 3}])


def _save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(_state(step), lambda folder: (folder / "weights").write_text("w" * 100) and None, ALONE)


def test_the_newest_checkpoint_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        _save(checkpoints, step)
    found = checkpoints.latest()
    assert found is not None
    assert found[1] == _state(15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


@pytest.mark.parametrize("damage", ["cut", "other bytes", "missing", "no loop", "half loop"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    _save(checkpoints, 5)
    _save(checkpoints, 10)
    newest = tmp_path / "step-000000010"
    if damage == "cut":
        (newest / "weights").write_text("w" * 50)
    elif damage == "other bytes":
        (newest / "weights").write_text("w" * 99 + "v")
    elif damage == "missing":
        (newest / "weights").unlink()
    elif damage == "no loop":
        (newest / "loop.json").unlink()
    else:
        (newest / "loop.json").write_text((newest / "loop.json").read_text()[:40])
    found = checkpoints.latest()
    assert found is not None
    assert found[1].total_steps == 5
    assert "step-000000010 is damaged" in caplog.text


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    _save(checkpoints, 5)

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(Fault, match=r"step-000000006 .*No space left on device\); step-000000005 is still there"):
        checkpoints.save(_state(6), fail, ALONE)
    found = checkpoints.latest()
    assert found is not None
    assert found[1].total_steps == 5


def test_the_loop_state_is_readable(tmp_path: Path) -> None:
    _save(Checkpoints(tmp_path, keep=1), 3)
    content = json.loads((tmp_path / "step-000000003" / "loop.json").read_text())
    assert content["state"]["total_steps"] == 3
    assert content["files"] == {"weights": hashlib.sha256(b"w" * 100).hexdigest()}
