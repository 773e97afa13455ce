"""Joint training: the loop of stage 2 from an untrained recommender, with no teacher."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import (
    EncoderConfig,
    EvaluateConfig,
    FeaturesConfig,
    JointConfig,
    LastNConfig,
    LoraConfig,
    Stage1Config,
    TuningConfig,
    ZeroConfig,
    recommender_config,
)
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.joint import train_joint
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks
from tests.training.steps import terminate_first_rank_before_step


def _config(project: Project, out: Path, **changes: Any) -> JointConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "features": project.features,
        "out": out,
        "model": recommender_config(changes.get("recommender", "vbpr"), dim=8),
        "epochs": 2,
        "batch_size": 12,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return JointConfig(**(settings | changes))


@pytest.mark.slow
@pytest.mark.parametrize(("recommender", "method"), [("vbpr", "prompt"), ("freedom", "lora"), ("vbpr", "none")])
def test_encoder_and_recommender_learn_together_from_scratch(
    tiny_project: Project, tmp_path: Path, recommender: str, method: str
) -> None:
    tuning = TuningConfig(method=method, **({"settings": LoraConfig(rank=2)} if method == "lora" else {}))
    run_on_ranks(2, train_joint, _config(tiny_project, tmp_path / "run", recommender=recommender, tuning=tuning))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recommender"] == recommender
    assert record["stage1"] is None
    assert (record["parameters"]["encoder"] > 0) == (method != "none")
    assert record["parameters"]["trainable"] == record["parameters"]["encoder"] + record["parameters"]["recommender"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert "loss/bpr" in lines[-1]
    assert "loss/kt" not in lines[-1]
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    evaluate_run(EvaluateConfig(run=tmp_path / "run", device="cpu"))
    for part, values in json.loads((tmp_path / "run" / "metrics.json").read_text()).items():
        assert values == pytest.approx(before[part], rel=1e-9)  # sums of two ranks and of one


def test_it_starts_where_stage_1_starts(tiny_project: Project, tmp_path: Path) -> None:
    frozen = TuningConfig(method="none")
    run_on_ranks(1, train_joint, _config(tiny_project, tmp_path / "joint", epochs=0, seed=4, tuning=frozen))
    train_stage1(
        Stage1Config(
            shards=tiny_project.shards,
            features=tiny_project.features,
            out=tmp_path / "stage1",
            model=recommender_config("vbpr", dim=8),
            epochs=0,
            seed=4,
            device="cpu",
            tracking=UNTRACKED,
        )
    )
    expected = load_file(tmp_path / "stage1" / "recommender.safetensors")
    found = load_file(tmp_path / "joint" / "recommender.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # also the maps for cold items, which both fit
        torch.testing.assert_close(found[name], value, msg=name)
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("joint", "stage1"))
    assert first["cold_validation"] == pytest.approx(second["cold_validation"])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_maps_for_cold_items_are_fitted_to_the_weights_and_features_that_are_kept(
    tiny_project: Project, tmp_path: Path, zero: int
) -> None:
    run_on_ranks(2, train_joint, _config(tiny_project, tmp_path / "run", zero=ZeroConfig(stage=zero)))  # type: ignore[arg-type]
    run = load_run(tmp_path / "run")
    kept = {name: value.clone() for name, value in run.recommender.state_dict().items()}
    assert kept["projections.image.weight"].any()
    run.recommender.fit_cold_map(run.features)
    for name, value in run.recommender.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-3, atol=1e-5, msg=name)


def _stopped_after(config: JointConfig, steps: int) -> None:
    terminate_first_rank_before_step(steps)
    train_joint(config)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "zero"), [("last_n", 0), ("full", 1), ("adapter", 2), ("lora", 3)])
def test_an_interrupted_run_of_any_method_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path, method: str, zero: int
) -> None:
    settings: dict[str, Any] = {
        "tuning": TuningConfig(method=method, **({"settings": LastNConfig(n=1)} if method == "last_n" else {})),
        "zero": ZeroConfig(stage=zero),  # type: ignore[arg-type]
        "epochs": 1,
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(2, train_joint, _config(tiny_project, whole, **settings))
    run_on_ranks(2, _stopped_after, _config(tiny_project, broken, **settings), 1)
    assert (broken / "checkpoints").is_dir()
    run_on_ranks(2, train_joint, _config(tiny_project, broken, **settings))
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    for file in ("recommender.safetensors", "encoder.safetensors"):
        expected, found = load_file(whole / file), load_file(broken / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_an_encoder_that_was_moved_is_found_by_the_option_that_the_message_names(
    tiny_project: Project, tmp_path: Path
) -> None:
    features, before, after = (tmp_path / name for name in ("features", "before", "after"))
    shutil.copytree(tiny_project.clip, before)
    encoder = EncoderConfig(model=str(before))
    extract_features(FeaturesConfig(shards=tiny_project.shards, out=features, encoder=encoder, device="cpu"))
    before.rename(after)
    message = f"encoder: no files at {before}, where {features} found them; give their folder by --encoder"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        train_joint(_config(tiny_project, tmp_path / "run", features=features))
    assert not (tmp_path / "run").exists()
    run_on_ranks(1, train_joint, _config(tiny_project, tmp_path / "run", features=features, encoder=after, epochs=0))
    record = load_run(tmp_path / "run").record.encoder
    assert record is not None
    assert record["model"] == str(after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recommender": "bpr"}, "recommender: bpr knows items by their IDs only"),
        ({"features": None}, "features: vbpr reads images and texts; add --features"),
        ({"tuning": TuningConfig(method="lora", settings=LoraConfig(rank=40))}, "lora.rank: got 40"),
    ],
)
def test_what_cannot_be_trained_jointly_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_joint(_config(tiny_project, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
