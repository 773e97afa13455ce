"""An experiment from settings to tables: every cell once, common steps once, finished runs kept, bad grids refused."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, ExperimentConfig, PackConfig, TrackingConfig
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.experiment.plan import lay_out
from ptmrec_dist.experiment.run import _run, run_experiment
from ptmrec_dist.training.records import read_record, write_record
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks
from tests.tiny_clip import write_tiny_clip


def _config(project: Project, out: Path, **changes: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "encoder": EncoderConfig(model=str(project.clip)),
        "out": out,
        "seeds": (0, 1),
        "stage1": {"epochs": 2, "batch_size": 64, "model": {"dim": 8}},
        "tuned": {"epochs": 1, "batch_size": 24, "lora": {"rank": 2}},
        "joint": {"model": {"dim": 8}},
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return ExperimentConfig(**(settings | changes))


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_common_steps_of_cells_run_once(tiny_project: Project, tmp_path: Path) -> None:
    plan = lay_out(
        _config(
            tiny_project,
            tmp_path,
            recommenders=("vbpr", "lightgcn"),
            paradigms=("frozen", "two_stage", "two_stage_without_kt", "joint", "contrastive"),
            methods=("prompt", "lora", "none"),
            modalities=("both", "text"),
        )
    )
    by_command = [step.command for step in plan.steps.values()]
    # By seed: two stage 1 of vbpr, one of lightgcn, four on fine-tuned features; 2 paradigms x 3 methods x 2 modalities.
    assert {command: by_command.count(command) for command in set(by_command)} == {
        "features": 1 + 2 * 2,
        "contrastive": 2 * 2,
        "stage1": 2 * (2 + 1 + 4),
        "stage2": 2 * 2 * 3 * 2,
        "joint": 2 * 3 * 2,
    }
    assert len(plan.cells) == len(set(plan.cells)) == 2 * (2 + 1 + 4 + 12 + 6)
    seen: set[str] = set()
    for name, step in plan.steps.items():
        assert seen.issuperset(step.needs), name
        seen.add(name)
    assert {cell.name for cell in plan.cells} <= seen


@pytest.mark.parametrize(
    ("axes", "name"),
    [
        (
            {
                "recommenders": ("wide", "large-wide"),
                "models": {name: {"recommender": "vbpr"} for name in ("wide", "large-wide")},
                "paradigms": ("frozen",),
            },
            "clip-large-wide-both-frozen-seed0",
        ),
        (
            {
                "methods": ("slow", "large-slow"),
                "variants": {name: {"tuning": {"method": "lora"}} for name in ("slow", "large-slow")},
                "paradigms": ("frozen", "contrastive"),
            },
            "encoders/clip-large-slow-seed0",
        ),
    ],
)
def test_names_that_would_make_one_of_two_different_steps_are_refused(
    tiny_project: Project, tmp_path: Path, axes: dict[str, Any], name: str
) -> None:
    encoders = {kind: EncoderConfig(model=str(tiny_project.clip)) for kind in ("clip", "clip-large")}
    config = _config(tiny_project, tmp_path, encoder=None, encoders=encoders, **axes)
    with pytest.raises(UserError, match=rf"\Aencoders: two different steps would be called {name}, .*; rename one"):
        lay_out(config)


def test_runs_that_tune_an_encoder_are_told_where_it_is_now(tiny_project: Project, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"paradigms": ("frozen", "two_stage_refit", "joint"), "methods": ("lora",)}
    whole = lay_out(_config(tiny_project, tmp_path, **axes)).steps.values()
    pair = EncoderConfig(image="timm:efficientnet_lite0", text=f"hf:{tiny_project.clip}")
    separate = lay_out(_config(tiny_project, tmp_path, **axes, encoder=pair)).steps.values()
    for steps, expected in ((whole, {"encoder"}), (separate, {"text_encoder"})):
        for step in steps:
            given = {name for name in step.settings if name.endswith("encoder")}
            if step.command in ("stage2", "joint"):
                assert given == expected
                assert {step.settings[name] for name in given} == {str(tiny_project.clip)}
            elif step.command != "features":
                assert not given


@pytest.fixture(scope="module")
def finished(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    run_on_ranks(1, int)  # the server that processes are forked from, with all that takes seconds to import
    config = _config(
        tiny_project,
        tmp_path_factory.mktemp("experiment") / "experiment",
        paradigms=("frozen", "two_stage", "joint", "contrastive"),
        methods=("lora",),
        processes=2,
    )
    run_experiment(config)
    return config


@pytest.mark.slow
def test_every_cell_has_its_run_and_its_row(finished: ExperimentConfig) -> None:
    tables = finished.out / "tables"
    for part in ("test", "cold_test"):
        rows = _table(tables / f"accuracy_{part}.csv")
        assert [(row["recommender"], row["paradigm"], row["method"]) for row in rows] == [
            ("vbpr", "frozen", "none"),
            ("vbpr", "two_stage", "lora"),
            ("vbpr", "joint", "lora"),
            ("vbpr", "contrastive", "lora"),
        ]
        for row in rows:
            tuned = "" if row["paradigm"] == "frozen" else "-lora"
            runs = [finished.out / "runs" / f"vbpr-both-{row['paradigm']}{tuned}-seed{seed}" for seed in (0, 1)]
            values = [json.loads((run / "metrics.json").read_text())[part]["recall@10"] for run in runs]
            assert row["recall@10"] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
        assert {path.suffix for path in tables.glob(f"accuracy_{part}.*")} == {".csv", ".md", ".tex"}


def _ndcg(folder: Path) -> list[float]:
    """NDCG@20 of each user on warm items, from the ranks that the experiment keeps."""
    ranks: dict[int, list[int]] = {}
    for row in pl.read_parquet(folder / "test.parquet").iter_rows(named=True):
        ranks.setdefault(row["user"], []).append(row["rank"])
    found = []
    for _, own in sorted(ranks.items()):
        gain = sum(1 / math.log2(rank + 1) for rank in own if rank <= 20)
        found.append(gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(own), 20) + 1)))
    return found


@pytest.mark.slow
def test_differences_are_tested_against_the_frozen_encoder(finished: ExperimentConfig) -> None:
    from scipy import stats

    rows = _table(finished.out / "tables" / "significance_test.csv")
    assert len(rows) == 3 * 4
    users = {
        paradigm: np.mean(
            [_ndcg(finished.out / "ranks" / f"vbpr-both-{paradigm}-seed{seed}") for seed in (0, 1)], axis=0
        )
        for paradigm in ("frozen", "joint-lora")
    }
    (row,) = (row for row in rows if row["paradigm"] == "joint" and row["metric"] == "ndcg@20")
    gaps = users["joint-lora"] - users["frozen"]
    assert float(row["difference"]) == pytest.approx(gaps.mean(), abs=5e-5)
    assert float(row["t_test_users"]) >= float(f"{stats.ttest_rel(users['joint-lora'], users['frozen']).pvalue:.3g}")


@pytest.mark.slow
def test_tests_over_seeds_stand_beside_those_over_users_and_every_mark_is_explained(finished: ExperimentConfig) -> None:
    for part in ("test", "cold_test"):
        found = {
            (row["paradigm"], row["metric"]): row
            for row in _table(finished.out / "tables" / f"significance_{part}.csv")
        }
        for row in _table(finished.out / "tables" / f"accuracy_{part}.csv"):
            tested = found.get((row["paradigm"], "recall@20"), {"t_test_users": "", "t_test_seeds": ""})
            assert row["p over users, Recall@20"] == tested["t_test_users"]
            assert row["p over seeds, Recall@20"] == tested["t_test_seeds"]
        shown = (finished.out / "tables" / f"accuracy_{part}.md").read_text()
        for paradigm, mark in ((row["paradigm"], mark) for row in found.values() for mark in "*†"):
            (line,) = (line for line in shown.splitlines() if f"| {paradigm} |" in line)
            test = {"*": "t_test_users", "†": "t_test_seeds"}[mark]
            assert line.replace("**", "").count(mark) == sum(
                float(row[test] or 1) < 0.05 for row in found.values() if row["paradigm"] == paradigm
            )
        assert "*: differs from frozen over users" in shown
        assert "†: the same over the 2 seeds" in shown
        assert "One split" in shown


@pytest.mark.slow
def test_the_page_has_every_figure_and_every_table_and_needs_nothing_else(finished: ExperimentConfig) -> None:
    html = (finished.out / "report.html").read_text()
    for heading in ("Accuracy", "Learning curves", "Recall by item popularity", "Recall by user history"):
        assert f"<h3>{heading}</h3>" in html
    for row in _table(finished.out / "tables" / "accuracy_test.csv"):
        assert re.search(rf"{row['recall@20']}\s*(<sup>|</td>)", html)
    assert html.count('<svg role="img" aria-label="') == html.count("<svg") > 10
    for outside in ('src="http', 'href="http', "<script", "@import", "url(http"):
        assert outside not in html
    assert "batch_size: 24" in html


@pytest.mark.slow
def test_costs_count_what_is_trained(finished: ExperimentConfig) -> None:
    rows = {row["paradigm"]: row for row in _table(finished.out / "tables" / "costs.csv")}
    lora = 3 * 2 * 16 * 32 + 2 * 2 * 16 * 24
    assert [rows[name]["trained in the encoder"] for name in ("two_stage", "joint", "contrastive")] == [f"{lora:,}"] * 3
    assert rows["frozen"]["trained in the encoder"] == "0"
    assert float(rows["two_stage"]["seconds an epoch"].replace(",", "")) > 0
    for paradigm in ("two_stage", "joint", "contrastive"):
        assert float(rows[paradigm]["items a second"].replace(",", "")) > 0
    encoders = [finished.out / "encoders" / f"lora-seed{seed}" / "efficiency.json" for seed in (0, 1)]
    seconds = [json.loads(path.read_text())["seconds_per_epoch"] for path in encoders]
    assert rows["contrastive"]["seconds an epoch"] == f"{np.mean(seconds):,.1f}"
    assert float(rows["frozen"]["peak memory in MB"].replace(",", "")) > 0
    assert rows["frozen"]["items a second"] == ""


@pytest.mark.slow
def test_every_cell_is_a_child_of_the_experiments_run(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = _config(
        tiny_project,
        tmp_path / "out",
        paradigms=("frozen", "two_stage"),
        seeds=(3,),
        methods=("none",),
        tracking=TrackingConfig(),
    )
    run_experiment(config)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "ptmrec")
    runs = client.search_runs([experiment.experiment_id])
    above = json.loads((config.out / "tracking.json").read_text())["mlflow_run"]
    children = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == above}
    assert children == {cell.name for cell in lay_out(config).cells}


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_what_is_missing_is(finished: ExperimentConfig) -> None:
    lost = finished.out / "runs" / "vbpr-both-two_stage-lora-seed1" / "metrics.json"
    expected = json.loads(lost.read_text())
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in finished.out.glob("runs/*/metrics.json")}
    tables = {path: path.read_text() for path in (finished.out / "tables").glob("accuracy*")}
    run_experiment(finished)
    assert json.loads(lost.read_text()) == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.read_text() for path in tables} == tables


@pytest.mark.slow
def test_an_experiment_that_was_moved_runs_nothing_again(finished: ExperimentConfig, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "moved")
    moved = replace(finished, out=tmp_path / "moved")
    times = {path: path.stat().st_mtime_ns for path in moved.out.rglob("*.safetensors")}
    shutil.rmtree(moved.out / "tables")
    run_experiment(moved)
    assert {path: path.stat().st_mtime_ns for path in moved.out.rglob("*.safetensors")} == times
    for path in (finished.out / "tables").glob("accuracy*"):
        assert (moved.out / "tables" / path.name).read_text() == path.read_text()


def _other_shards(tiny_project: Project, config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    tables = {"items": tiny_project.source / "items.csv", "interactions": tiny_project.source / "interactions.csv"}
    pack(PackConfig(**tables, out=folder, split="cold_items", core=2, num_shards=8, workers=1, seed=5))  # type: ignore[arg-type]
    return replace(config, shards=folder)


def _other_encoder(tiny_project: Project, config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    return replace(config, encoder=EncoderConfig(model=str(write_tiny_clip(folder, seed=9))))


def _stage1_trained_anew(tiny_project: Project, config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    run = config.out / "runs" / "vbpr-both-frozen-seed0"
    write_record(run, replace(read_record(run), kept_epoch=99))
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_shards, r"shards: got [0-9a-f]{12}, but .* was started with [0-9a-f]{12}; give that or choose"),
        (_other_encoder, r"encoder: got [0-9a-f]{12}, but .* was started with [0-9a-f]{12}; give that or choose"),
        (
            _stage1_trained_anew,
            r"out: vbpr-both-two_stage-lora-seed0 was made from stage1 [0-9a-f]{12}, which is [0-9a-f]{12} now; remove",
        ),
    ],
)
def test_finished_steps_of_other_inputs_are_refused(
    finished: ExperimentConfig, tiny_project: Project, tmp_path: Path, change: Any, message: str
) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    changed = change(tiny_project, replace(finished, out=tmp_path / "out"), tmp_path / "other")
    with pytest.raises(UserError, match=message):
        run_experiment(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recommenders": ["vbpr", "vpbr"]}, "recommenders: got 'vpbr', expected some of bpr, lightgcn"),
        ({"paradigms": ["frozen", "two_steps"]}, "two_steps"),
        ({"methods": ["lorra"]}, "lorra"),
        ({"modalities": ["sound"]}, "sound"),
        ({"seeds": [1, 1]}, "seeds: got [1, 1], expected each only once"),
        ({"paradigms": ["joint"]}, "baseline: got 'frozen', expected one of joint, best, or frozen among --paradigms"),
        ({"tuned": {"lora": {"rank": 0}}}, "lora.rank: got 0, expected 1 or more"),
        ({"tuned": {"lora": {"rnak": 2}}}, "rnak"),
        ({"stage1": {"epoch": 3}}, "epoch"),
        ({"methods": ["last_n"], "tuned": {"last_n": {"n": 7}}}, "last_n.n: got 7, but the image tower has 3 layers"),
        ({"shards": "nowhere"}, "nowhere"),
        ({"shards": None}, "shards: got none, expected either --shards or --pack.interactions"),
        ({"pack": {"split": "random"}}, "pack.split: got random, but "),
        ({"pack": {"num_shards": 3}}, "pack.num_shards: got 3, expected none with --shards: nothing is packed"),
    ],
)
def test_a_grid_that_some_run_would_refuse_is_refused_before_any_begins(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "shards": str(tiny_project.shards),
        "encoder": {"model": str(tiny_project.clip)},
        "out": str(tmp_path / "out"),
        "methods": ["lora"],
        "tracking": {"enabled": False},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings | changes))
    assert cli.run("experiment", ["--config", str(tmp_path / "experiment.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_settings_changed_since_are_refused(finished: ExperimentConfig, tiny_project: Project) -> None:
    other = _config(
        tiny_project,
        finished.out,
        paradigms=finished.paradigms,
        methods=finished.methods,
        stage1={"epochs": 3, "batch_size": 64, "model": {"dim": 8}},
    )
    with pytest.raises(UserError, match=r"vbpr-both-frozen-seed0 was started with other settings \(epochs 2 -> 3\)"):
        run_experiment(other)
    (finished.out.parent / "mine").mkdir()
    (finished.out.parent / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no experiment"):
        run_experiment(_config(tiny_project, finished.out.parent / "mine"))


def test_a_grid_that_names_its_split_runs_on_a_data_set_packed_with_that_split(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"pack": {"split": "cold_items"}, "encoder": {"model": str(tiny_project.clip)}, "seeds": [0]}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    chosen = ["--shards", str(tiny_project.shards), "--out", str(tmp_path / "out"), "--dry_run", "true"]
    assert cli.run("experiment", ["--config", str(tmp_path / "experiment.yaml"), *chosen]) == 0
    assert "shards/split0" not in capsys.readouterr().out


def test_a_run_that_fails_is_named_with_its_reason(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(
        tiny_project,
        tmp_path / "out",
        paradigms=("frozen",),
        seeds=(0,),
        stage1={"epochs": 1, "lr": 1e30, "batch_size": 8},
    )
    with pytest.raises(UserError, match=r"vbpr-both-frozen-seed0 failed \(.*run the same command to resume"):
        run_experiment(config)
    assert (tmp_path / "out" / "features" / "plain" / "manifest.json").is_file()


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (3, Fault), (-9, Fault)])
def test_a_run_that_was_killed_or_lost_is_no_mistake_of_the_user(
    code: int, kind: type[Exception], tiny_project: Project, tmp_path: Path
) -> None:
    def execute(arguments: list[str], ranks: int, log: Path) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("started\nthe last line\n")
        return code

    config = _config(tiny_project, tmp_path / "out", paradigms=("frozen",), seeds=(0,))
    name, step = next(iter(lay_out(config).steps.items()))
    (config.out / "settings").mkdir(parents=True)
    with pytest.raises(kind, match=r"failed \(the last line\); see .*; once that is fixed, run the same command"):
        _run(config, execute, name, step, None)


@pytest.mark.slow
@pytest.mark.launch
def test_runs_that_tune_an_encoder_take_several_ranks(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(
        tiny_project, tmp_path / "out", paradigms=("joint",), baseline="joint", methods=("prompt",), seeds=(0,), ranks=2
    )
    run_experiment(config)
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert (run / "encoder.safetensors").is_file()
    assert len((tmp_path / "out" / "logs" / f"{run.name}.log").read_text().split("epoch 1:")) == 2  # one rank speaks
    assert not any(
        path.name.startswith("significance") and _table(path) for path in (tmp_path / "out").glob("tables/*.csv")
    )


_RUN = "import sys; from pathlib import Path; from ptmrec_dist.experiment.executors import run_locally as run; "
_RUN += "run(sys.argv[2:], 2, Path(sys.argv[1]))"


@pytest.mark.slow
@pytest.mark.launch
def test_ranks_of_a_killed_experiment_end_with_it(tiny_project: Project, tmp_path: Path) -> None:
    os.mkfifo(log := tmp_path / "log")
    words = ["stage2", "--stage1", f"{tiny_project.stage1}", "--out", f"{tmp_path}/out", "--tracking.enabled", "false"]
    words += ["--epochs", "1000", "--patience", "1000", "--batch_size", "24", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-c", _RUN, str(log), *words]) as experiment, log.open() as lines:
        assert any("epoch 0: " in line for line in lines)
        experiment.kill()
        rest = lines.read()  # until the last process that may write to it has ended
    assert "epoch 1000: " not in rest
