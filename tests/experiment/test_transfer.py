"""Experiments with transfer and cold start: what is pre-trained once, and that runs take parts of it over."""

from pathlib import Path
from typing import Any

import pytest

from ptmrec_dist.config import EncoderConfig, ExperimentConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.plan import lay_out
from ptmrec_dist.experiment.run import run_experiment
from ptmrec_dist.files import read_json
from tests.conftest import UNTRACKED, Project

PARADIGMS = ("joint", "transfer_full", "transfer_items", "transfer_user", "transfer_text", "transfer_image")


def _config(project: Project, out: Path, **changes: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "source": project.shards,
        "encoder": EncoderConfig(model=str(project.clip)),
        "out": out,
        "recommenders": ("pmmrec",),
        "paradigms": PARADIGMS,
        "methods": ("none",),
        "seeds": (0,),
        "baseline": "joint",
        "tuned": {"epochs": 1, "batch_size": 60},
        "joint": {"model": {"dim": 8, "length": 5, "fusion_heads": 2}},
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return ExperimentConfig(**(settings | changes))


def test_a_metric_that_there_is_not_is_refused_before_anything_runs(tiny_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric: got 'hr@7'"):
        run_experiment(_config(tiny_project, tmp_path / "out", metrics=("hr@7",)))
    assert not (tmp_path / "out").exists()


def test_all_transfers_of_a_seed_take_parts_of_one_run_on_the_source(tiny_project: Project, tmp_path: Path) -> None:
    plan = lay_out(_config(tiny_project, tmp_path, seeds=(0, 1), recommenders=("pmmrec", "vbpr", "sasrec")))
    assert len(plan.cells) == 2 * (len(PARADIGMS) + 1)  # VBPR is trained jointly
    assert plan.grid.left_out.total() == 2 * (5 + 6)
    sources = [name for name in plan.steps if "source" in name]
    assert sources == [
        "features/source",
        "source-pmmrec-both-joint-none-seed0",
        "source-pmmrec-both-joint-none-seed1",
    ]


def test_the_source_is_read_as_it_is_where_the_catalogue_is_packed_first(tiny_project: Project, tmp_path: Path) -> None:
    tables = {"items": "items.csv", "interactions": "interactions.csv", "split": "leave_one_out"}
    plan = lay_out(_config(tiny_project, tmp_path, shards=None, pack=tables))
    source, target = (plan.steps[f"{split}-pmmrec-both-joint-none-seed0"] for split in ("source", "split0"))
    assert source.settings["shards"] == str(tiny_project.shards)
    assert target.settings["shards"] == str(tmp_path / "shards" / "split0")
    assert ["shards/split0" in step.needs for step in (source, target)] == [False, True]


def test_a_source_is_given_exactly_where_it_is_read(tiny_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source: got none, expected a packed data set"):
        _config(tiny_project, tmp_path, source=None)
    with pytest.raises(UserError, match="expected no packed data set"):
        _config(tiny_project, tmp_path, paradigms=("joint",))


@pytest.mark.slow
def test_transfers_run_and_cold_start_has_tables(tiny_project: Project, tmp_path: Path) -> None:
    asked = {"paradigms": ("joint", "transfer_user", "transfer_text"), "cold_below": 8, "metrics": ("hr@50", "ndcg@10")}
    config = _config(tiny_project, tmp_path / "out", **asked)
    run_experiment(config)
    runs = tmp_path / "out/runs"
    source = read_json(runs / "source-pmmrec-both-joint-none-seed0/run.json", "run")
    for paradigm, modalities in (("both-transfer_user", ["image", "text"]), ("text-transfer_text", ["text"])):
        made = read_json(runs / f"pmmrec-{paradigm}-none-seed0/run.json", "run")
        assert made["source"]["fingerprint"] == source["fingerprint"]
        assert made["modalities"] == modalities
        assert made["hyperparameters"]["nid"] == "none"
    assert source["hyperparameters"]["nid"] == "softmax"
    accuracy = (tmp_path / "out/tables/accuracy_test.csv").read_text().splitlines()[0]
    assert "hr@50" in accuracy
    assert "recall@10" not in accuracy
    assert "change of Recall@20" in accuracy
    table = (tmp_path / "out/tables/cold_start_all.csv").read_text()
    assert table.count("\n") == 4
    assert "hr@10" in table.splitlines()[0]
    assert "Cold start, all rows" in (tmp_path / "out/report.html").read_text()
    run_experiment(config)  # all is finished and measured
