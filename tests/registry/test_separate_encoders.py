"""Separate models of images and texts through the whole chain: features, both stages, a registered model, new items."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from torch import Tensor

from ptmrec_dist.config import (
    ContrastiveConfig,
    EncoderConfig,
    FeaturesConfig,
    LoraConfig,
    RegisterConfig,
    Stage2Config,
    TuningConfig,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry.registering import register
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.encoders.tiny_sources import write_image_encoder, write_text_encoder
from tests.ranks import run_on_ranks
from tests.registry.test_tuned_features import _scored_as_new, _stage1

LENGTH = {"sentence_bert_config.json": {"max_seq_length": 5}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_image_encoder(root / "image", "test_vit")
    write_text_encoder(root / "text", "bert", "mean", files=LENGTH)
    return root


def _features(project: Project, out: Path, encoder: EncoderConfig, **settings: Any) -> dict[str, np.ndarray]:
    extract_features(FeaturesConfig(shards=project.shards, encoder=encoder, out=out, device="cpu", **settings))
    return {path.stem: np.load(path) for path in out.glob("*.npy")}


@pytest.mark.slow
def test_a_pair_of_encoders_is_tuned_registered_moved_and_scores_new_items(
    tiny_project: Project, sources: Path, empty_registry: MlflowClient, tmp_path: Path
) -> None:
    own = shutil.copytree(sources, tmp_path / "encoders")
    pair = EncoderConfig(image=f"timm:{own / 'image'}", text=f"hf:{own / 'text'}", prefix="query : ")
    tables = _features(tiny_project, tmp_path / "features", pair)
    assert {name: table.shape[1] for name, table in tables.items()} == {"image": 64, "text": 24}
    _stage1(tiny_project, tmp_path / "features", tmp_path / "a")
    from_tables, served = _scored_as_new(tmp_path / "a", 7, "frozen")
    assert served == pytest.approx(from_tables, rel=1e-3, abs=1e-5)
    tuning = TuningConfig(method="lora", settings=LoraConfig(rank=2, towers="text"))
    second: dict[str, Any] = {"epochs": 1, "batch_size": 24, "device": "cpu", "tracking": UNTRACKED, "tuning": tuning}
    run_on_ranks(2, train_stage2, Stage2Config(stage1=tmp_path / "a", out=tmp_path / "b", **second))
    tuned = _features(tiny_project, tmp_path / "tuned", EncoderConfig(model=str(tmp_path / "b")))
    np.testing.assert_allclose(tuned["text"], np.load(tmp_path / "b" / "features" / "text.npy"), atol=1e-5)
    assert np.abs(tuned["text"] - tables["text"]).max() > 1e-6
    from_tables, served = _scored_as_new(tmp_path / "b", 11, "tuned")
    assert served == pytest.approx(from_tables, rel=1e-3, abs=1e-5)
    (own / "text").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"text_encoder: no files at .*; give their folder by --text_encoder"):
        register(RegisterConfig(run=tmp_path / "a", name="moved"))
    register(RegisterConfig(run=tmp_path / "a", name="moved", text_encoder=tmp_path / "elsewhere"))


def test_one_encoder_reads_its_modality_alone_and_texts_cut_off_are_counted(
    tiny_project: Project, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Dataset(tiny_project.shards)
    assert _features(tiny_project, tmp_path / "text", EncoderConfig(text=f"hf:{sources / 'text'}")).keys() == {"text"}
    assert open_features(tmp_path / "text", dataset.fingerprint, 60).manifest.cut_texts == 60
    assert "60 texts (100%) are longer than the encoder reads: their ends were cut off" in capsys.readouterr().out
    plain = _features(tiny_project, tmp_path / "image", EncoderConfig(image=f"timm:{sources / 'image'}"))
    raw = _features(tiny_project, tmp_path / "raw", EncoderConfig(image=f"timm:{sources / 'image'}"), raw=True)["image"]
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), plain["image"], atol=1e-5)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    assert json.loads((tmp_path / "raw" / "manifest.json").read_text())["encoder_settings"]["raw"] is True
    assert "longer than" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_pair_in_a_common_space_serves_every_later_step(
    tiny_project: Project, sources: Path, empty_registry: MlflowClient, tmp_path: Path
) -> None:
    pair = EncoderConfig(image=f"timm:{sources / 'image'}", text=f"hf:{sources / 'text'}")
    start = {"shards": tiny_project.shards, "encoder": pair, "projection": 16, "projection_lr": 0.02, "epochs": 30}
    none = TuningConfig(method="none")
    fine_tune(ContrastiveConfig(**start, out=tmp_path / "pair", tuning=none, device="cpu", tracking=UNTRACKED))
    tables = _features(tiny_project, tmp_path / "features", EncoderConfig(model=str(tmp_path / "pair")))
    assert {name: table.shape[1] for name, table in tables.items()} == {"image": 16, "text": 16}
    cosines = tables["image"] @ tables["text"].T
    assert np.diagonal(cosines).mean() > cosines.mean() + 0.2
    _stage1(tiny_project, tmp_path / "features", tmp_path / "a")
    tuning = TuningConfig(method="full")
    second: dict[str, Any] = {"epochs": 1, "batch_size": 24, "device": "cpu", "tracking": UNTRACKED, "tuning": tuning}
    run_on_ranks(1, train_stage2, Stage2Config(stage1=tmp_path / "a", out=tmp_path / "b", **second))
    before, after = (_weights(tmp_path / name) for name in ("pair", "b"))
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert {name for name in moved if "space" in name} == {f"space.projections.{name}.weight" for name in tables}
    from_tables, served = _scored_as_new(tmp_path / "b", 7, "space")
    assert served == pytest.approx(from_tables, rel=1e-3, abs=1e-5)


def _weights(folder: Path) -> dict[str, Tensor]:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"))
    return dict(encoder.model.state_dict())
