"""What stage 1 does by itself where there is much data: larger batches, and a sample of the users between epochs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.config.sequences import SASRecConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import World
from ptmrec_dist.training import ranking_evaluation, stage1
from ptmrec_dist.training.evaluator import Evaluator
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage1 import batch_size_of, default_batch_size, learning_rate_of, train_stage1
from tests.conftest import UNTRACKED, Project


def _config(project: Project, out: Path, **changes: object) -> Stage1Config:
    return Stage1Config(**{"shards": project.shards, "out": out, "recommender": "bpr", "tracking": UNTRACKED} | changes)


def test_batches_grow_where_an_epoch_would_have_more_than_200_steps() -> None:
    assert default_batch_size(118_551) == default_batch_size(200 * 2048) == 2048
    assert default_batch_size(10_000_000) == 50_000


def test_the_batch_size_is_what_was_set_or_suits_the_data_unless_a_step_reads_a_batch_alone(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage1, "_BATCH_SIZE", 4)
    monkeypatch.setattr(stage1, "_STEPS", 5)
    dataset, config = Dataset(tiny_project.shards), _config(tiny_project, tmp_path)
    rows = len(dataset.interactions("train").users)
    assert batch_size_of(config, dataset) == rows // 5 > 4
    assert batch_size_of(replace(config, batch_size=7), dataset) == 7
    assert batch_size_of(replace(config, recommender="sasrec", model=SASRecConfig()), dataset) == 4
    scaled = config.learning_rate * (rows // 5 / 4) ** 0.5
    assert learning_rate_of(config, dataset) == pytest.approx(scaled)
    assert learning_rate_of(replace(config, batch_size=7), dataset) == config.learning_rate
    assert learning_rate_of(replace(config, lr=0.5), dataset) == 0.5


def test_a_run_says_and_records_the_batch_size_that_was_chosen(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage1, "_BATCH_SIZE", 4)
    monkeypatch.setattr(stage1, "_STEPS", 5)
    train_stage1(_config(tiny_project, tmp_path / "run", epochs=1))
    rows = len(Dataset(tiny_project.shards).interactions("train").users)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["batch_size"] == rows // 5
    assert (
        f"batch_size: {rows // 5} interactions per step, {-(-rows // (rows // 5))} steps per epoch"
        in capsys.readouterr().out
    )


def test_between_epochs_a_sample_of_the_users_is_evaluated_and_in_the_end_all(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking_evaluation, "MOST_USERS", 5)
    train_stage1(_config(tiny_project, tmp_path / "run", epochs=1))
    run = load_run(tmp_path / "run")
    world = World(0, 1, torch.device("cpu"))
    everyone = Evaluator(run.dataset, "validation")
    some = Evaluator(run.dataset, "validation", most_users=5)
    found = some.per_user(run.recommender, {})["validation"]
    assert len(found.users) == 5 < len(everyone.per_user(run.recommender, {})["validation"].users)
    np.testing.assert_array_equal(
        Evaluator(run.dataset, "validation", most_users=5).per_user(run.recommender, {})["validation"].users,
        found.users,
    )
    of_all = everyone.per_user(run.recommender, {})["validation"]
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, of_all.values[name][np.isin(of_all.users, found.users)])
    line = yaml.safe_load((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert line["validation.recall@20"] == pytest.approx(found.values["recall@20"].mean())
    metrics = yaml.safe_load((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["validation"]["recall@20"] == pytest.approx(
        everyone(run.recommender, {}, world)["validation"]["recall@20"]
    )
