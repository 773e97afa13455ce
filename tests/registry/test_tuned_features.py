"""Features of a tuned encoder name it: what is trained on them serves new items with the encoder that they came from."""

import base64
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from ptmrec_dist.config import (
    EncoderConfig,
    FeaturesConfig,
    LoraConfig,
    OptimConfig,
    PromptConfig,
    RefitConfig,
    RegisterConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
    recommender_config,
)
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.registering import register
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.refit import refit
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks
from tests.vectors import all_vectors


def _tuned(project: Project, out: Path, stage1: Path, method: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 12, "device": "cpu", "tracking": UNTRACKED}
    own = LoraConfig(rank=2) if method == "lora" else PromptConfig(length=2)
    settings |= {"optim": OptimConfig(encoder_lr=0.3)}
    tuning = TuningConfig(method=method, settings=own)
    run_on_ranks(1, train_stage2, Stage2Config(stage1=stage1, out=out, tuning=tuning, **settings))


def _stage1(project: Project, features: Path, out: Path) -> None:
    model = recommender_config("vbpr", dim=8)
    settings: dict[str, Any] = {"epochs": 2, "device": "cpu", "tracking": UNTRACKED, "model": model}
    train_stage1(Stage1Config(shards=project.shards, features=features, out=out, **settings))


def _scored_as_new(run: Path, item: int, name: str) -> tuple[float, float]:
    """The cold score of an item for the first user: of the run's own tables, and served from the item's image and text."""
    register(RegisterConfig(run=run, name=name))
    loaded = load_run(run)
    model = loaded.recommender.eval()
    users, _ = all_vectors(model, loaded.features, loaded.dataset.num_users)
    items = model.cold_items({modality: table[[item]] for modality, table in loaded.features.items()})
    paths = loaded.dataset.shard_paths()
    with tarfile.open(paths[int(loaded.dataset.item_shards[item])]) as tar:
        image, text = (tar.extractfile(f"{item:09d}.{kind}").read() for kind in ("jpg", "txt"))  # type: ignore[union-attr]
    row = {"user_id": loaded.dataset.user_ids[0], "image": base64.b64encode(image).decode(), "text": text.decode()}
    answer = load_model(f"models:/{name}@candidate").predict(pd.DataFrame([row]))
    return (users[0] @ items[0]).item(), float(answer["score"][0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt", "lora"])
def test_a_recommender_trained_on_tuned_features_serves_new_items_with_the_tuned_encoder(
    tiny_project: Project,
    empty_registry: MlflowClient,
    tmp_path: Path,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned = tmp_path / "tuned"
    _tuned(tiny_project, tuned, tiny_project.stage1, method)
    frozen = np.load(tiny_project.features / "text.npy")
    assert np.abs(np.load(tuned / "features" / "text.npy") - frozen).max() > 1e-2
    refit(RefitConfig(run=tuned, out=tmp_path / "refit", epochs=2, device="cpu", tracking=UNTRACKED))
    capsys.readouterr()
    from_tables, served = _scored_as_new(tmp_path / "refit", 7, "refit")
    runs = {"stage 1": tiny_project.stage1, "tuned": tuned, "refit": tmp_path / "refit"}
    made = {name: json.loads((run / "run.json").read_text())["fingerprint"][:12] for name, run in runs.items()}
    assert f"lineage: {' -> '.join(f'{name} {digest}' for name, digest in made.items())}\n" in capsys.readouterr().out
    assert served == pytest.approx(from_tables, rel=1e-3, abs=1e-5)
    record = json.loads((tmp_path / "refit" / "run.json").read_text())
    assert Path(record["encoder"]["model"]) == tuned.resolve()


@pytest.mark.slow
def test_a_run_is_an_encoder_whose_features_are_those_that_the_run_left(tiny_project: Project, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    _tuned(tiny_project, tuned, tiny_project.stage1, "prompt")
    settings = {"shards": tiny_project.shards, "device": "cpu"}
    extract_features(FeaturesConfig(encoder=EncoderConfig(model=str(tuned)), out=tmp_path / "again", **settings))
    for modality in ("image", "text"):
        again, left = (np.load(folder / f"{modality}.npy") for folder in (tmp_path / "again", tuned / "features"))
        np.testing.assert_allclose(again, left, atol=1e-6)
    names = [json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "again", tuned / "features")]
    frozen = json.loads((tiny_project.features / "manifest.json").read_text())
    assert names[0]["encoder"] == names[1]["encoder"] != frozen["encoder"]


@pytest.mark.slow
def test_an_encoder_is_tuned_again_from_where_a_run_left_it(
    tiny_project: Project, empty_registry: MlflowClient, tmp_path: Path
) -> None:
    _tuned(tiny_project, tmp_path / "first", tiny_project.stage1, "lora")
    _stage1(tiny_project, tmp_path / "first" / "features", tmp_path / "between")
    _tuned(tiny_project, tmp_path / "second", tmp_path / "between", "lora")
    from_tables, served = _scored_as_new(tmp_path / "second", 11, "second")
    assert served == pytest.approx(from_tables, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_run_without_an_encoder_is_refused_as_one(tiny_project: Project, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 0, "device": "cpu", "tracking": UNTRACKED}
    train_stage1(Stage1Config(shards=tiny_project.shards, recommender="bpr", out=tmp_path / "ids", **settings))
    encoder = EncoderConfig(model=str(tmp_path / "ids"))
    with pytest.raises(UserError, match="has no encoder"):
        extract_features(FeaturesConfig(shards=tiny_project.shards, encoder=encoder, out=tmp_path / "x", device="cpu"))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_tuned_weights_that_were_changed_since_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    _tuned(tiny_project, tmp_path / "first", tiny_project.stage1, "prompt")
    _stage1(tiny_project, tmp_path / "first" / "features", tmp_path / "refit")
    _tuned(tiny_project, tmp_path / "other", tiny_project.stage1, "lora")
    (tmp_path / "other" / "encoder.safetensors").replace(tmp_path / "first" / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder: .* but the features came from"):
        register(RegisterConfig(run=tmp_path / "refit", name="refit"))
