"""Refit: stage 1 again on the tuned features, its lineage, its settings, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptmrec_dist import cli
from ptmrec_dist.config import (
    EvaluateConfig,
    LoraConfig,
    OptimConfig,
    RefitConfig,
    ReportConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
)
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.report import report
from ptmrec_dist.files import read_yaml
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.refit import refit
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import STAGE1, UNTRACKED, Project
from tests.ranks import exit_codes_on_ranks, run_on_ranks
from tests.training.steps import kill_before_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2 that tuned its encoder by LoRA."""
    out = tmp_path_factory.mktemp("stage2") / "tuned"
    run_on_ranks(1, train_stage2, _stage2(tiny_project, out))
    return out


def _stage2(project: Project, out: Path, **changes: Any) -> Stage2Config:
    tuning = TuningConfig(method="lora", settings=LoraConfig(rank=2))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 12, "device": "cpu", "tracking": UNTRACKED}
    settings |= {"tuning": tuning, "optim": OptimConfig(encoder_lr=0.3)}
    return Stage2Config(stage1=project.stage1, out=out, **(settings | changes))


def _refit(run: Path, out: Path, **changes: Any) -> RefitConfig:
    return RefitConfig(run=run, out=out, device="cpu", tracking=UNTRACKED, **({"start": "scratch"} | changes))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_trains_what_stage_1_trains_on_the_tuned_features_and_compares_all_three(
    tiny_project: Project, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refit(_refit(tuned, tmp_path / "refit"))
    printed = capsys.readouterr().out
    train_stage1(
        Stage1Config(
            shards=tiny_project.shards,
            features=tuned / "features",
            out=tmp_path / "reference",
            device="cpu",
            tracking=UNTRACKED,
            **STAGE1,
        )
    )
    weights = [(tmp_path / name / "recommender.safetensors").read_bytes() for name in ("refit", "reference")]
    assert weights[0] == weights[1]
    runs = {"stage 1": tiny_project.stage1, "stage 2": tuned, "refit": tmp_path / "refit"}
    metrics = {name: _json(folder / "metrics.json") for name, folder in runs.items()}
    table = printed[printed.rindex("┏") :].splitlines()
    assert max(map(len, table)) <= 80
    for line, (name, values) in zip(table[3:6], metrics.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        parts = ("validation", "test", "cold_validation", "cold_test")
        assert cells == ["recall@20", name, *(f"{values[part]['recall@20']:.4f}" for part in parts)]


def test_from_scratch_it_starts_from_factors_where_stage_1_did(
    tiny_project: Project, tmp_path: Path, implicit: Any
) -> None:
    common = {"device": "cpu", "tracking": UNTRACKED, **STAGE1, "epochs": 1}
    data = {"shards": tiny_project.shards, "init": "als"}
    train_stage1(Stage1Config(features=tiny_project.features, out=tmp_path / "stage1", **data, **common))
    run_on_ranks(1, train_stage2, replace(_stage2(tiny_project, tmp_path / "tuned"), stage1=tmp_path / "stage1"))
    refit(_refit(tmp_path / "tuned", tmp_path / "refit"))
    train_stage1(Stage1Config(features=tmp_path / "tuned" / "features", out=tmp_path / "reference", **data, **common))
    weights = [(tmp_path / name / "recommender.safetensors").read_bytes() for name in ("refit", "reference")]
    assert weights[0] == weights[1]
    assert _json_lines(tmp_path / "refit" / "history.jsonl")[0]["epoch"] == 0


def test_its_lineage_names_the_tuned_encoder_and_both_stages(
    tiny_project: Project, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "refit"
    refit(_refit(tuned, out, epochs=1))
    record, stage2 = _json(out / "run.json"), _json(tuned / "run.json")
    assert record["stage2"]["fingerprint"] == stage2["fingerprint"]
    assert record["stage1"]["fingerprint"] == stage2["stage1"]["fingerprint"]
    assert record["encoder"]["fingerprint"] == _json(tuned / "features" / "manifest.json")["encoder"]
    assert record["encoder"]["fingerprint"] != stage2["encoder"]["fingerprint"]
    before = _json(out / "metrics.json")
    capsys.readouterr()
    evaluate_run(EvaluateConfig(run=out, device="cpu"))
    assert _json(out / "metrics.json") == before
    printed = capsys.readouterr().out
    for name, folder in {"stage 1": tiny_project.stage1, "stage 2": tuned, "refit": out}.items():
        (line,) = (line for line in printed.splitlines() if "recall@20" in line and f" {name} " in line)
        assert f"{_json(folder / 'metrics.json')['cold_test']['recall@20']:.4f}" in line
    report(ReportConfig(runs=f"{tiny_project.stage1},{tuned},{out}", out=tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "trained by" in page
    assert all(f"<td>{command}</td>" in page for command in ("stage1", "stage2", "refit"))
    run_on_ranks(1, train_stage2, replace(_stage2(tiny_project, tmp_path / "again"), stage1=out))
    again = _json(tmp_path / "again" / "run.json")
    assert again["stage2"] is None
    assert again["stage1"]["fingerprint"] == record["fingerprint"]
    capsys.readouterr()
    refit(_refit(tuned, out, epochs=1))
    assert "is complete" in capsys.readouterr().out


def test_flags_replace_the_settings_of_stage_1(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "refit"
    words = ["--run", str(tuned), "--out", str(out), "--model.dim", "4", "--epochs", "2", "--lr", "0.01", "--seed", "5"]
    words += ["--start", "scratch"]
    assert cli.run("refit", [*words, "--device", "cpu", "--tracking.enabled", "false"]) == 0
    record, asked = _json(out / "run.json"), read_yaml(out / "config.yaml", "out")
    assert record["hyperparameters"]["dim"] == 4
    assert (asked["lr"], asked["epochs"], asked["seed"], asked["batch_size"]) == (0.01, 2, 5, 64)
    assert cli.run("refit", ["--config", str(out / "config.yaml")]) == 0  # what it wrote describes the same run
    with pytest.raises(UserError, match=r"other settings \(lr 0.01 -> 0.001"):
        refit(_refit(tuned, out, model={"dim": 4}, epochs=2, seed=5))


def test_it_starts_from_the_weights_that_the_run_left_and_takes_smaller_steps(
    tiny_project: Project, tuned: Path, tmp_path: Path
) -> None:
    words = ["--run", str(tuned), "--out", str(tmp_path / "refit"), "--epochs", "1", "--device", "cpu"]
    assert cli.run("refit", [*words, "--tracking.enabled", "false"]) == 0
    stage1, own = (read_yaml(folder / "config.yaml", "out") for folder in (tiny_project.stage1, tmp_path / "refit"))
    assert own["lr"] == pytest.approx(stage1["lr"] / 3)
    first = _json_lines(tmp_path / "refit" / "history.jsonl")[0]
    assert first["epoch"] == 0
    for name, value in _json(tuned / "metrics.json")["validation"].items():
        assert first[f"validation.{name}"] == pytest.approx(value, abs=1e-6), name


def _killed_in_refit(config: Stage2Config) -> None:
    """The second process of training is the refit's: stage 2 has one step for each of 4 batches."""
    import ptmrec_dist.training.refit as module

    kill = module.train_recommender

    def killed(*args: Any, **kwargs: Any) -> None:
        kill_before_step(3)
        kill(*args, **kwargs)

    module.train_recommender = killed
    train_stage2(config)


def test_stage_2_goes_on_to_its_refit_and_resumes_it(tiny_project: Project, tuned: Path, tmp_path: Path) -> None:
    refit(_refit(tuned, tmp_path / "by-hand", start="run"))
    config = _stage2(tiny_project, tmp_path / "run", refit=True)
    assert exit_codes_on_ranks(1, _killed_in_refit, config) == [-9]
    assert (config.out / "metrics.json").is_file()
    assert not (config.out / "refit" / "metrics.json").exists()
    run_on_ranks(1, train_stage2, config)
    for name in ("recommender.safetensors", "history.jsonl", "metrics.json"):
        assert (config.out / "refit" / name).read_bytes() == (tmp_path / "by-hand" / name).read_bytes(), name
    record = _json(config.out / "refit" / "run.json")
    assert record["stage2"]["fingerprint"] == _json(config.out / "run.json")["fingerprint"]
    shutil.copytree(config.out, tmp_path / "moved" / "run")
    evaluate_run(EvaluateConfig(run=tmp_path / "moved" / "run" / "refit", device="cpu"))


def test_a_run_that_was_complete_without_its_refit_gets_it_and_none_is_made_of_a_frozen_encoder(
    tiny_project: Project, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    run_on_ranks(2, train_stage2, _stage2(tiny_project, tmp_path / "run", refit=True))
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before
    assert (tmp_path / "run" / "refit" / "metrics.json").is_file()
    with pytest.raises(UserError, match="refit: got True, expected false with"):
        _stage2(tiny_project, tmp_path / "out", tuning=TuningConfig(method="none"), refit=True)


def _killed(config: RefitConfig) -> None:
    kill_before_step(7)
    refit(config)


def test_a_killed_refit_ends_like_an_undisturbed_one(tuned: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes: dict[str, Any] = {"start": "run", "checkpoint_every": 3, "epochs": 3}
    refit(_refit(tuned, whole, **changes))
    assert exit_codes_on_ranks(1, _killed, _refit(tuned, broken, **changes)) == [-9]
    refit(_refit(tuned, broken, **changes))
    for name in ("recommender.safetensors", "history.jsonl", "metrics.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_cannot_be_refitted_is_refused_before_anything_is_written(
    tiny_project: Project, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen, unfinished, out = tmp_path / "frozen", tmp_path / "unfinished", tmp_path / "out"
    run_on_ranks(1, train_stage2, _stage2(tiny_project, frozen, tuning=TuningConfig(method="none"), epochs=0))
    shutil.copytree(tuned, unfinished)
    (unfinished / "metrics.json").unlink()
    for run, flags, message in (
        (tiny_project.stage1, [], "is a run of stage 1; expected one of"),
        (unfinished, [], "is not finished"),
        (frozen, [], "left its encoder frozen"),
        (tmp_path / "nothing", [], "is not a run folder"),
        (tuned, ["--stage1", str(tuned)], "stage1: "),
        (tuned, ["--stage1", str(tmp_path / "moved")], "stage1: no files at"),
        (tuned, ["--model.width", "3"], "width"),
        (tuned, ["--model.dim", "few"], "dim"),
        (tuned, ["--lr", "-1"], "lr: got -1"),
        (tuned, ["--start", "run", "--model.dim", "4"], "model: these hyper-parameters do not fit"),
    ):
        assert cli.run("refit", ["--run", str(run), "--out", str(out), "--device", "cpu", *flags]) == 2, message
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1, error
        assert not out.exists(), message


def test_folders_that_were_moved_are_found_or_given(tiny_project: Project, tuned: Path, tmp_path: Path) -> None:
    """The run is found beside the copied stage 1 no more: its path is given."""
    stage1, run = tmp_path / "elsewhere" / "first", tmp_path / "run"
    shutil.copytree(tiny_project.stage1, stage1)
    shutil.copytree(tuned, run)
    record = _json(run / "run.json")
    record["stage1"] |= {"path": "/nowhere", "relative": {"path": "../nowhere"}}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="stage1: no files at /nowhere"):
        refit(_refit(run, tmp_path / "refit"))
    refit(_refit(run, tmp_path / "refit", stage1=stage1, epochs=1))
    made = _json(tmp_path / "refit" / "run.json")
    assert Path(made["encoder"]["model"]) == run.resolve()
