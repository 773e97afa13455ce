"""Features of catalogues that lack a modality, in part or in whole, and of images that are smaller than an encoder's."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.config import ContrastiveConfig, EncoderConfig, FeaturesConfig, PackConfig, Stage1Config, Stage2Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED
from tests.data.small_catalogue import write_catalogue
from tests.ranks import run_on_ranks
from tests.tiny_clip import write_tiny_clip


def _packed(folder: Path, items: pl.DataFrame | None = None, **changes: object) -> PackConfig:
    config = dataclasses.replace(write_catalogue(folder, num_items=24), core=2, num_shards=4, missing="keep", **changes)
    table = pl.read_csv(config.items)
    if items is None:
        number = pl.int_range(24)
        items = table.with_columns(
            image=pl.when(number % 4 == 1).then(None).otherwise(pl.col("image")),
            text=pl.when(number % 6 == 0).then(None).otherwise(pl.col("text")),
        )
    items.write_csv(config.items)
    pack(config)
    return config


def _features(config: PackConfig, clip: Path, **changes: object) -> FeaturesConfig:
    return FeaturesConfig(
        shards=config.out,
        out=config.out.parent / "features",
        encoder=EncoderConfig(model=str(clip)),
        batch_size=5,
        device="cpu",
        **changes,  # type: ignore[arg-type]
    )


def test_what_an_item_lacks_is_the_mean_of_the_others(tmp_path: Path, tiny_clip: Path, capsys) -> None:
    config = _packed(tmp_path / "project")
    settings = _features(config, tiny_clip)
    extract_features(settings)
    for modality, lacking in (("image", range(1, 24, 4)), ("text", range(0, 24, 6))):
        table = np.load(settings.out / f"{modality}.npy")
        others = np.delete(table, lacking, axis=0)
        np.testing.assert_allclose(np.linalg.norm(others, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(table[lacking], np.tile(others.mean(axis=0), (len(lacking), 1)), rtol=1e-5)
    assert json.loads((settings.out / "manifest.json").read_text())["filled"] == {"image": 6, "text": 4}
    assert "6 items have no image: their image rows are the mean of the others" in capsys.readouterr().out


def test_items_that_lack_nothing_have_the_features_that_they_have_alone(tmp_path: Path, tiny_clip: Path) -> None:
    incomplete = _features(_packed(tmp_path / "a"), tiny_clip)
    whole = _features(
        _packed(tmp_path / "b", pl.read_csv(write_catalogue(tmp_path / "c", num_items=24).items)), tiny_clip
    )
    for settings in (incomplete, whole):
        extract_features(settings)
    for modality in ("image", "text"):
        has = Dataset(incomplete.shards).has(modality)
        found, expected = (np.load(settings.out / f"{modality}.npy")[has] for settings in (incomplete, whole))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_goes_through_every_stage(tmp_path: Path, tiny_clip: Path, modality: str) -> None:
    items = pl.read_csv(write_catalogue(tmp_path / "source", num_items=24).items).select("item_id", modality)
    config = _packed(tmp_path / "project", items)
    settings = _features(config, tiny_clip)
    extract_features(settings)
    assert sorted(path.name for path in settings.out.iterdir()) == sorted([f"{modality}.npy", "manifest.json"])
    stage1 = Stage1Config(
        shards=config.out, features=settings.out, out=tmp_path / "one", epochs=2, device="cpu", tracking=UNTRACKED
    )
    train_stage1(stage1)
    assert json.loads((stage1.out / "run.json").read_text())["modalities"] == [modality]
    with pytest.raises(
        UserError, match=f"modalities: got both, but .* has {modality} alone; give --modalities {modality}"
    ):
        train_stage1(dataclasses.replace(stage1, out=tmp_path / "x", modalities="both"))
    stage2 = Stage2Config(
        stage1=stage1.out, out=tmp_path / "two", epochs=1, batch_size=8, device="cpu", tracking=UNTRACKED
    )
    run_on_ranks(1, train_stage2, stage2)
    assert (stage2.out / "metrics.json").is_file()
    pairs = ContrastiveConfig(shards=config.out, encoder=settings.encoder, out=tmp_path / "pairs", tracking=UNTRACKED)
    with pytest.raises(UserError, match=f"has {modality}s alone, but images and texts are needed"):
        fine_tune(pairs)


def test_stage_2_learns_nothing_from_what_an_item_lacks(tmp_path: Path, tiny_clip: Path) -> None:
    from tests.training.tuner_world import Case, make_batch, make_tuner

    config = _packed(tmp_path / "project")
    settings = _features(config, tiny_clip)
    extract_features(settings)
    tuner, dataset = make_tuner(config.out, settings.out, tiny_clip, Case())
    tuner.has = {name: torch.from_numpy(dataset.has(name)) for name in ("image", "text")}
    trained = np.unique(dataset.interactions("train").items)
    lacking = trained[~dataset.has("image")[trained]][:3].tolist()
    items_G, _, features_G = tuner._gather(make_batch(tuner, dataset, lacking))
    rows = features_G["image"][: len(lacking)]
    assert torch.equal(rows.detach(), tuner.features["image"][items_G[: len(lacking)]])
    rows.sum().backward()
    image = tuner.encoder.attached["image"]
    assert all(weight.grad is None or not weight.grad.any() for weight in image.parameters())


def test_images_that_were_packed_smaller_than_the_encoder_takes_get_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _packed(tmp_path / "project", image_size=24)
    small, large = (write_tiny_clip(tmp_path / f"clip{size}", image_size=size) for size in (24, 32))
    caplog.set_level(logging.WARNING, "ptmrec_dist")
    extract_features(_features(config, small, strict=True))
    assert "pack with --image_size" not in caplog.text
    extract_features(_features(config, large))
    assert caplog.text.count("were reduced to 24 pixels, but the encoder takes 32") == 1
    assert "pack with --image_size 32" in caplog.text
    before = (config.out.parent / "features" / "image.npy").read_bytes()
    with pytest.raises(UserError, match="reduced to 24 pixels, but the encoder takes 32"):
        extract_features(_features(config, large, strict=True))
    assert (config.out.parent / "features" / "image.npy").read_bytes() == before


@pytest.mark.slow
def test_tuned_features_also_record_what_was_filled(tmp_path: Path, tiny_clip: Path) -> None:
    config = _packed(tmp_path / "project")
    settings = _features(config, tiny_clip)
    extract_features(settings)
    common = {"device": "cpu", "tracking": UNTRACKED, "epochs": 1}
    stage1 = Stage1Config(shards=config.out, features=settings.out, out=tmp_path / "one", **common)
    train_stage1(stage1)
    run_on_ranks(1, train_stage2, Stage2Config(stage1=stage1.out, out=tmp_path / "two", batch_size=8, **common))
    tuned = tmp_path / "two" / "features"
    assert json.loads((tuned / "manifest.json").read_text())["filled"] == {"image": 6, "text": 4}
    image = np.load(tuned / "image.npy")
    has = Dataset(config.out).has("image")
    np.testing.assert_allclose(image[~has], np.tile(image[has].mean(axis=0), (6, 1)), rtol=1e-4, atol=1e-6)
