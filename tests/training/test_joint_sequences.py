"""Joint training of an encoder and a sequence recommender: MoRec and PMMRec."""

import json
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
    TuningConfig,
    ZeroConfig,
    recommender_config,
)
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.joint import train_joint
from tests.conftest import UNTRACKED, Project
from tests.encoders.families import write_family
from tests.ranks import run_on_ranks
from tests.recommenders.conftest import for_few_items
from tests.training.steps import terminate_first_rank_before_step

SMALL: dict[str, dict[str, Any]] = {
    "morec": {"dim": 8, "length": 5, "dropout": 0.0},
    "pmmrec": {"dim": 8, "length": 5, "dropout": 0.0, "fusion_heads": 2},
}


def _config(project: Project, out: Path, recommender: str, **changes: Any) -> JointConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "features": project.features,
        "out": out,
        "recommender": recommender,
        "model": recommender_config(recommender, **SMALL.get(recommender, {"dim": 8})),
        "tuning": TuningConfig(method="last_n", settings=LastNConfig(n=1)),
        "epochs": 2,
        "batch_size": 50,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return JointConfig(**(settings | changes))


def _losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss")} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("recommender", ["morec", "pmmrec"])
def test_two_ranks_train_as_one_process_does(tiny_project: Project, tmp_path: Path, recommender: str) -> None:
    """With AdamW a gradient of another size would hardly show; the losses after steps on it do."""
    run_on_ranks(1, train_joint, _config(tiny_project, tmp_path / "one", recommender))
    run_on_ranks(2, train_joint, _config(tiny_project, tmp_path / "two", recommender, zero=ZeroConfig(stage=2)))
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    terms = {"next_item"} | ({"contrast", "nid", "rcl"} if recommender == "pmmrec" else set())
    assert set(one[-1]) == {"loss"} | {f"loss/{term}" for term in terms}
    assert one[2]["loss"] < one[1]["loss"]
    for found, expected in zip(two, one, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    before = json.loads((tmp_path / "one" / "metrics.json").read_text())
    evaluate_run(EvaluateConfig(run=tmp_path / "one", device="cpu"))
    assert json.loads((tmp_path / "one" / "metrics.json").read_text()) == before
    tuned = load_file(tmp_path / "one" / "encoder.safetensors")
    for name, value in load_file(tmp_path / "two" / "encoder.safetensors").items():
        torch.testing.assert_close(value, tuned[name], rtol=1e-3, atol=1e-4, msg=name)


def _stopped_after(config: JointConfig, steps: int) -> None:
    terminate_first_rank_before_step(steps)
    train_joint(config)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "zero"), [("lora", 1), ("none", 3)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path, method: str, zero: int
) -> None:
    settings: dict[str, Any] = {
        "tuning": TuningConfig(method=method),
        "zero": ZeroConfig(stage=zero),  # type: ignore[arg-type]
        "model": recommender_config("pmmrec", **(SMALL["pmmrec"] | {"dropout": 0.3})),
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(2, train_joint, _config(tiny_project, whole, "pmmrec", **settings))
    run_on_ranks(2, _stopped_after, _config(tiny_project, broken, "pmmrec", **settings), 3)
    assert (broken / "checkpoints").is_dir()
    run_on_ranks(2, train_joint, _config(tiny_project, broken, "pmmrec", **settings))
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    assert (whole / "encoder.safetensors").exists() == (method != "none")
    for file in ("recommender.safetensors", *(["encoder.safetensors"] if method != "none" else [])):
        expected, found = load_file(whole / file), load_file(broken / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_other_recommenders_of_the_next_item_train_their_encoder_along(tiny_project: Project, tmp_path: Path) -> None:
    before = load_backbone(EncoderConfig(model=str(tiny_project.clip))).model.state_dict()
    for recommender in ("fdsa", "carca", "unisrec"):
        model = recommender_config(recommender, dim=8, length=5)
        run = tmp_path / recommender
        train_joint(_config(tiny_project, run, recommender, model=model, epochs=1, keep="last"))
        for name, value in load_file(run / "encoder.safetensors").items():
            assert not torch.equal(value, before[name.removeprefix("model.")]), f"{recommender}: {name}"
    frozen = _config(tiny_project, tmp_path / "frozen", "morec", epochs=1, tuning=TuningConfig(method="none"))
    train_joint(frozen)
    assert not (tmp_path / "frozen" / "encoder.safetensors").exists()


@pytest.mark.slow
def test_what_cannot_be_trained_on_sequences_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path
) -> None:
    codes = recommender_config("vqrec", dim=8, **for_few_items("vqrec"))
    for recommender, changes, message in (
        ("morec", {"batching": "interaction"}, "batching: got 'interaction', expected the default with morec"),
        ("morec", {"users_per_item": 3}, "users_per_item: got 3, expected none with morec"),
        ("morec", {"accumulation": 2}, "accumulation: got 2, expected 1 with morec"),
        ("morec", {"loss": "full"}, "loss: got 'full', expected inbatch"),
        ("vbpr", {"logq": False}, "logq: got False, expected True"),
        ("vqrec", {"model": codes}, "recommender: got vqrec, which reads codes of features"),
    ):
        with pytest.raises(UserError, match=message):
            train_joint(_config(tiny_project, tmp_path / "run", recommender, **changes))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_encoder_without_tokens_is_refused_before_anything_is_written(tiny_project: Project, tmp_path: Path) -> None:
    encoder = EncoderConfig(model=str(write_family(tmp_path / "resnet", "resnet")))
    settings = FeaturesConfig(shards=tiny_project.shards, out=tmp_path / "features", encoder=encoder)
    extract_features(settings)
    with pytest.raises(UserError, match=r"encoder: the image tower \(ModifiedResNet\) has no sequence of tokens"):
        train_joint(_config(tiny_project, tmp_path / "run", "pmmrec", features=tmp_path / "features"))
    assert not (tmp_path / "run").exists()
