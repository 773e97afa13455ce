"""What training cost, after an interruption in the middle of an epoch."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ptmrec_dist.config import Stage1Config, recommender_config
from ptmrec_dist.training import stage1
from ptmrec_dist.training.run_folder import EFFICIENCY_FILE
from ptmrec_dist.training.trainer import Trainer
from tests.conftest import UNTRACKED, Project


def test_the_rest_of_an_epoch_is_no_whole_epoch(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second, as the clock says."""
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    whole_step = Trainer.train_step

    def step(trainer: Trainer, window: list[Any]) -> None:
        whole_step(trainer, window)
        seconds[0] += 1
        if trainer.state.total_steps == 2:
            trainer.session.interrupt.requested = True

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(stage1, "_CHECK_EVERY", 1)
    config = Stage1Config(
        shards=tiny_project.shards,
        features=tiny_project.features,
        out=tmp_path / "run",
        recommender="bpr",
        model=recommender_config("bpr", dim=8),
        epochs=2,
        batch_size=64,
        device="cpu",
        tracking=UNTRACKED,
    )
    stage1.train_stage1(config)
    interrupted = seconds[0]
    stage1.train_stage1(config)
    steps = seconds[0] / 2
    assert 0 < interrupted < steps - 1
    assert json.loads((tmp_path / "run" / EFFICIENCY_FILE).read_text())["seconds_per_epoch"] == pytest.approx(steps)
