"""The demo's folder: what is not its own, or is of another seed, is left alone; its page counts what was packed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ptmrec_dist.config import DemoConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.demo import demo
from ptmrec_dist.demo_page import BASELINE, CANDIDATE, MODEL_NAME, RUNS, _summary
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT
from tests.conftest import Project


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no demo; choose another --out"):
        demo(DemoConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_of_another_seed_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"seed": 3}')
    with pytest.raises(UserError, match="holds the demo of seed 3, got seed 4"):
        demo(DemoConfig(out=tmp_path, seed=4))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("name", ["demo.json", "seconds.json"])
def test_a_damaged_file_of_an_earlier_demo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:unused")  # the command would set it for this whole process
    (tmp_path / "demo.json").write_text('{"seed": 0}')
    (tmp_path / name).write_text("[")
    with pytest.raises(UserError, match=f"out: {tmp_path / name} is damaged"):
        demo(DemoConfig(out=tmp_path))


def test_the_page_counts_products_and_users_of_the_packed_data_and_gives_intervals(
    tiny_project: Project, tmp_path: Path
) -> None:
    for folder in RUNS.values():
        shutil.copytree(tiny_project.stage1, tmp_path / folder)
    dataset = Dataset(tiny_project.shards)
    first, *_, last = _summary(tmp_path, dataset)
    assert f"{dataset.num_items:,} products and {dataset.num_users:,} users" in first
    value = json.loads((tiny_project.stage1 / "metrics.json").read_text())["cold_test"][SELECT]
    same = f"{value:.3f} to {value:.3f}, a difference of +0.000 with a 95 % confidence interval over users"
    assert f"{same} of [+0.000, +0.000]" in last


@pytest.mark.slow
def test_the_demo_promotes_its_model_through_the_gate_and_the_champion_answers(tmp_path: Path) -> None:
    """The whole command, in minutes: what README promises first."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "ptmrec_dist", "demo", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    promoted = next(line for line in done.stdout.splitlines() if line.startswith("promoted version"))
    assert promoted.startswith(f"promoted version 2 of {MODEL_NAME} to models:/{MODEL_NAME}@champion: cold_validation")
    metrics = {run: json.loads((tmp_path / "demo" / RUNS[run] / "metrics.json").read_text()) for run in RUNS}
    cold, warm = ({run: metrics[run][part][SELECT] for run in RUNS} for part in ("cold_validation", "validation"))
    assert cold[CANDIDATE] > cold[BASELINE]
    assert warm[CANDIDATE] > 0.95 * warm[BASELINE]
    assert "Recall@20" in (tmp_path / "demo" / "report.html").read_text()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
