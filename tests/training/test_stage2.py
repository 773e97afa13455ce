"""Stage 2 under a real DeepSpeed engine: what it tunes, resuming after a kill, every ZeRO stage, and refusals."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import EvaluateConfig, OptimConfig, PromptConfig, Stage2Config, TuningConfig, ZeroConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_json_lines
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import REPOSITORY, UNTRACKED, Project
from tests.ranks import exit_codes_on_ranks, free_port, run_on_ranks
from tests.tiny_clip import write_tiny_clip
from tests.training.steps import kill_before_step, terminate_first_rank_before_step
from tests.vectors import all_vectors


def _config(project: Project, out: Path, **changes: Any) -> Stage2Config:
    settings: dict[str, Any] = {
        "stage1": project.stage1,
        "out": out,
        "tuning": TuningConfig(method="prompt"),
        "epochs": 2,
        "batch_size": 12,
        "checkpoint_every": 2,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return Stage2Config(**(settings | changes))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "recommender.safetensors") | load_file(run / "encoder.safetensors")


def test_prompts_are_tuned_saved_alone_and_evaluated(tiny_project: Project, tmp_path: Path) -> None:
    backbone = (tiny_project.clip / "open_clip_model.safetensors").read_bytes()
    run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / "run"))
    metrics = _json(tmp_path / "run" / "metrics.json")
    assert list(metrics) == ["validation", "test", "cold_validation", "cold_test"]
    for part in metrics.values():
        assert {"recall@10", "recall@20", "ndcg@10", "ndcg@20"} <= part.keys()
    prompts = load_file(tmp_path / "run" / "encoder.safetensors")
    assert {name: tuple(value.shape) for name, value in prompts.items()} == {
        "attached.image.vectors_PLD": (3, 4, 32),
        "attached.text.vectors_PLD": (2, 4, 24),
    }
    record, first = _json(tmp_path / "run" / "run.json"), _json(tiny_project.stage1 / "run.json")
    assert record["stage1"]["fingerprint"] == first["fingerprint"]
    assert record["data"]["fingerprint"] == first["data"]["fingerprint"]
    assert record["features"]["fingerprint"] != first["features"]["fingerprint"]
    assert (tiny_project.clip / "open_clip_model.safetensors").read_bytes() == backbone
    before = (tmp_path / "run" / "metrics.json").read_text()
    evaluate_run(EvaluateConfig(run=tmp_path / "run", device="cpu"))
    assert (tmp_path / "run" / "metrics.json").read_text() == before


@pytest.mark.slow
def test_all_items_are_encoded_anew_only_where_somebody_reads_the_result(tiny_project: Project, tmp_path: Path) -> None:
    lora = {"tuning": TuningConfig(method="lora")}  # prompts alone change the features before the first step
    runs: dict[str, tuple[dict[str, Any], list[int]]] = {
        "last": ({}, [3]),
        "last-lora": (lora, [0, 3]),
        "every": ({"refresh_every": 1}, [0, 1, 2, 3]),
        "best": ({"keep": "best"}, [0, 1, 2, 3]),
    }
    for name, (changes, epochs) in runs.items():
        run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / name, epochs=3, patience=9, **changes))
        assert [line["epoch"] for line in read_json_lines(tmp_path / name / "history.jsonl", "runs")] == epochs
    # An evaluation changes nothing in what is trained.
    torch.testing.assert_close(_weights(tmp_path / "last"), _weights(tmp_path / "every"), rtol=0, atol=0)


def test_without_tuning_the_features_stay_as_they_are(tiny_project: Project, tmp_path: Path) -> None:
    run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / "run", tuning=TuningConfig(method="none")))
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    for name in ("image.npy", "text.npy"):
        np.testing.assert_array_equal(
            np.load(tmp_path / "run" / "features" / name), np.load(tiny_project.features / name)
        )


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_epoch_that_is_asked_for_is_kept(tiny_project: Project, tmp_path: Path, keep: str) -> None:
    optim = OptimConfig(encoder_lr=1.0, recommender_lr=30.0, schedule="constant")  # an epoch that does harm
    config = _config(
        tiny_project,
        tmp_path / "run",
        keep=keep,
        epochs=2,
        refresh_every=1,
        patience=1,
        select_on="validation",
        optim=optim,
        seed=3,
    )
    run_on_ranks(1, train_stage2, config)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert history[1]["validation.recall@20"] < history[0]["validation.recall@20"]
    kept, evaluations = (0, 2) if keep == "best" else (2, 3)
    assert len(history) == evaluations
    metrics = _json(tmp_path / "run" / "metrics.json")
    assert metrics["validation"] == {
        name.removeprefix("validation."): value
        for name, value in history[kept].items()
        if name.startswith("validation.")
    }


def _assert_equal_runs(found: Path, expected: Path) -> None:
    for part, values in _json(expected / "metrics.json").items():
        assert _json(found / "metrics.json")[part] == pytest.approx(values, rel=1e-5)
    weights = _weights(found)
    for name, value in _weights(expected).items():
        near = 1e-4 if name.startswith("projections.") else 1e-5  # equations that are solved multiply differences
        torch.testing.assert_close(
            weights[name], value, rtol=near, atol=near, msg=lambda why, name=name: f"{name}: {why}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["item", "interaction"])
def test_ranks_and_zero_stages_learn_the_same(tiny_project: Project, tmp_path: Path, batching: str) -> None:
    """An epoch is one batch, so that it is the same on any number of ranks: only the order of additions differs."""
    pairs = len(Dataset(tiny_project.shards).interactions("train").users)
    optim = OptimConfig(encoder_lr=1e-2, recommender_lr=1e-2)
    settings: dict[str, Any] = {"batching": batching, "batch_size": pairs, "epochs": 4, "patience": 9, "optim": optim}
    for ranks, stage in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
        config = _config(tiny_project, tmp_path / f"{ranks}-{stage}", zero=ZeroConfig(stage=stage), **settings)  # type: ignore[arg-type]
        run_on_ranks(ranks, train_stage2, config)
        _assert_equal_runs(config.out, tmp_path / "1-0")
    start = load_file(tiny_project.stage1 / "recommender.safetensors")
    for name, value in load_file(tmp_path / "1-0" / "recommender.safetensors").items():
        assert (value - start[name]).abs().max() > 1e-2, name  # a thousand times what they may differ by


@pytest.mark.slow
def test_zero_stages_accumulate_the_same(tiny_project: Project, tmp_path: Path) -> None:
    for stage in (0, 1, 2, 3):
        out = tmp_path / f"zero{stage}"
        config = _config(tiny_project, out, zero=ZeroConfig(stage=stage), accumulation=2, epochs=1, patience=9)  # type: ignore[arg-type]
        run_on_ranks(2, train_stage2, config)
        _assert_equal_runs(out, tmp_path / "zero0")


def _killed_at_step(config: Stage2Config, step: int) -> None:
    kill_before_step(step)
    train_stage2(config)


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "ranks", "step"), [(1, 1, 1), (2, 2, 3), (3, 2, 6)])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path, zero: int, ranks: int, step: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings: dict[str, Any] = {"zero": ZeroConfig(stage=zero)}  # type: ignore[arg-type]
    run_on_ranks(ranks, train_stage2, _config(tiny_project, whole, **settings))
    codes = exit_codes_on_ranks(ranks, _killed_at_step, _config(tiny_project, broken, **settings), step)
    assert codes == [-9] * ranks
    assert not (broken / "metrics.json").exists()
    run_on_ranks(ranks, train_stage2, _config(tiny_project, broken, **settings))
    assert _json(broken / "metrics.json") == _json(whole / "metrics.json")
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    expected = _weights(whole)
    for name, value in _weights(broken).items():
        assert torch.equal(value, expected[name]), name
    assert not (broken / "checkpoints").exists()


@pytest.mark.slow
def test_checkpoints_share_the_features_of_a_refresh(tiny_project: Project, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = _config(tiny_project, out, refresh_every=1, checkpoint_every=1, keep_checkpoints=20)
    assert exit_codes_on_ranks(1, _killed_at_step, config, 6) == [-9]
    files: dict[int, list[int]] = {}
    for folder in sorted((out / "checkpoints").glob("step-*")):
        epoch = _json(folder / "loop.json")["state"]["epoch"]
        files.setdefault(epoch, []).append((folder / "features.safetensors").stat().st_ino)
    assert sorted(files) == [0, 1]
    assert len(files[0]) > 1
    assert all(len(set(same)) == 1 for same in files.values())
    assert files[0][0] != files[1][0]


def test_checkpoints_of_a_frozen_encoder_hold_no_features(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(tiny_project, tmp_path / "run", tuning=TuningConfig(method="none"))
    assert exit_codes_on_ranks(1, _killed_at_step, config, 3) == [-9]
    found = {path.name for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert found == {"loop.json", "weights.safetensors", "optimizer.safetensors"}
    assert exit_codes_on_ranks(1, train_stage2, config) == [0]


def _asked_to_stop_at_step(config: Stage2Config, step: int) -> str:
    terminate_first_rank_before_step(step)
    train_stage2(config)
    return "returned"


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_step_and_the_run_goes_on(
    tiny_project: Project, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(2, train_stage2, _config(tiny_project, whole))
    assert run_on_ranks(2, _asked_to_stop_at_step, _config(tiny_project, broken), 4) == ["returned", "returned"]
    assert not (broken / "metrics.json").exists()
    loop = _json(sorted((broken / "checkpoints").iterdir())[-1] / "loop.json")
    assert loop["state"]["total_steps"] == 5
    run_on_ranks(2, train_stage2, _config(tiny_project, broken))
    assert _json(broken / "metrics.json") == _json(whole / "metrics.json")


@pytest.mark.slow
def test_a_terminated_command_exits_with_0_says_how_to_resume_and_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(1, train_stage2, _config(tiny_project, whole, epochs=3, refresh_every=1))
    command = [
        *(sys.executable, "launchers/stage2.py", "--stage1", str(tiny_project.stage1), "--out", str(broken)),
        *("--epochs", "3", "--refresh_every", "1", "--batch_size", "12", "--checkpoint_every", "2"),
        *("--tuning.method", "prompt", "--device", "cpu", "--tracking.enabled", "false"),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1: ") for line in process.stdout)  # two more are to come
        process.terminate()
        said = process.stdout.read()
    assert process.returncode == 0
    assert re.search(r"interrupted at step \d+; run the same command to resume\n$", said)
    assert not (broken / "metrics.json").exists()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0
    assert "resuming at step" in done.stdout
    for name in ("metrics.json", "history.jsonl"):
        assert (broken / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
@pytest.mark.launch
def test_deepspeed_launcher_gives_what_two_ranks_give(tiny_project: Project, tmp_path: Path) -> None:
    run_on_ranks(2, train_stage2, _config(tiny_project, tmp_path / "ranks", epochs=1))
    bin_folder = Path(sys.executable).parent
    command = [
        *(str(bin_folder / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), "launchers/stage2.py"),
        *("--stage1", str(tiny_project.stage1), "--out", str(tmp_path / "launched"), "--epochs", "1"),
        *("--batch_size", "12", "--checkpoint_every", "2", "--device", "cpu", "--tracking.enabled", "false"),
        *("--tuning.method", "prompt"),
    ]
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _json(tmp_path / "launched" / "metrics.json") == _json(tmp_path / "ranks" / "metrics.json")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("precision", "fraction"), [("fp32", 0.01), ("bf16", 0.3)])
def test_a_gpu_learns_what_a_cpu_learns(tiny_project: Project, tmp_path: Path, precision: str, fraction: float) -> None:
    """Features and scores differ by a fraction of what stage 2 has changed in them."""
    for device, number in (("cpu", "fp32"), ("cuda", precision)):
        run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / device, device=device, precision=number))
    runs = [load_run(run) for run in (tiny_project.stage1, tmp_path / "cpu", tmp_path / "cuda")]
    found = [dict(run.features) for run in runs]
    for tables, run in zip(found, runs, strict=True):
        users, items = all_vectors(run.recommender, run.features, run.dataset.num_users)
        tables["scores"] = users @ items.T
    for name, (start, cpu, gpu) in {name: [tables[name] for tables in found] for name in found[0]}.items():
        assert (gpu - cpu).norm() < fraction * (cpu - start).norm(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tuning": TuningConfig(method="prompt", settings=PromptConfig(depth=9))},
            "prompt.depth: got 9, but the image tower has 3 layers, the text tower has 2",
        ),
        ({"cuda_graphs": True}, "cuda_graphs: got true, but the device is cpu; expected a GPU"),
        ({"stage1": Path("nowhere")}, "stage1: nowhere is not a run folder; expected the --out of a finished run"),
        ({"shards": Path("nowhere")}, "nowhere"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_stage2(replace(_config(tiny_project, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_features_of_another_encoder_are_refused_with_both_fingerprints(tiny_project: Project, tmp_path: Path) -> None:
    other = write_tiny_clip(tmp_path / "other", seed=9)
    with pytest.raises(
        UserError, match=r"encoder: .* is [0-9a-f]{12}, but the features came from [0-9a-f]{12}; restore"
    ):
        train_stage2(_config(tiny_project, tmp_path / "run", encoder=other))
    assert not (tmp_path / "run").exists()


def test_an_id_only_recommender_is_refused(tiny_project: Project, tmp_path: Path) -> None:
    from ptmrec_dist.config import Stage1Config
    from ptmrec_dist.training.stage1 import train_stage1

    stage1 = tmp_path / "bpr"
    train_stage1(Stage1Config(shards=tiny_project.shards, out=stage1, recommender="bpr", epochs=1, tracking=UNTRACKED))
    with pytest.raises(
        UserError,
        match="bpr knows items by their IDs only, which no encoder changes; expected one that reads features: vbpr",
    ):
        train_stage2(_config(tiny_project, tmp_path / "run", stage1=stage1))


def test_a_batch_that_ranks_cannot_share_is_refused(tiny_project: Project, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="batch_size: got 7, expected a multiple of the 2 ranks"):
        run_on_ranks(2, train_stage2, _config(tiny_project, tmp_path / "run", batch_size=7))
