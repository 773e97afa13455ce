"""The maps by which cold items are scored and read fit the vectors and features that are evaluated, whatever trained them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.config import (
    FeaturesConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
    ZeroConfig,
    recommender_config,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.files import read_json, read_json_lines
from ptmrec_dist.training.evaluator import Evaluator
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.data.small_catalogue import write_catalogue
from tests.ranks import run_on_ranks
from tests.recommenders.test_ridge import augmented_least_squares, best_strength, penalty_of
from tests.vectors import all_vectors


def _tuned(project: Project, folder: Path, recommender: str, settings: dict[str, Any], **changes: Any) -> FinishedRun:
    """Stage 1 with a recommender, then a stage 2 that moves features a lot."""
    train_stage1(
        Stage1Config(
            shards=project.shards,
            features=project.features,
            out=folder / "stage1",
            recommender=recommender,
            model=recommender_config(recommender, dim=8, **settings),
            epochs=3,
            batch_size=64,
            lr=0.02,
            tracking=UNTRACKED,
        )
    )
    config = Stage2Config(
        stage1=folder / "stage1",
        out=folder / "stage2",
        tuning=TuningConfig(method="prompt"),  # they change features at once, also those that no loss reads
        epochs=1,
        batch_size=12,
        keep="last",
        device="cpu",
        tracking=UNTRACKED,
        **changes,
    )
    run_on_ranks(2, train_stage2, config)
    return load_run(folder / "stage2")


def _ridge(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights with the strength that predicts left-out rows best."""
    inputs, targets = inputs.astype(float), targets.astype(float)
    return augmented_least_squares(inputs, targets, penalty_of(inputs, best_strength(inputs, targets)))[0]


def _expected_vectors(run: FinishedRun, cold: np.ndarray) -> np.ndarray:
    """Vectors of cold items from maps fitted here and now."""
    model, features = run.recommender.eval(), {name: table.numpy() for name, table in run.features.items()}
    warm = np.unique(run.dataset.interactions("train").items)
    with torch.no_grad():
        targets = all_vectors(model, run.features, run.dataset.num_users)[1].numpy()
    return np.mean([table[cold] @ _ridge(table[warm], targets[warm]) for table in features.values()], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recommender", "kt_weight", "zero", "settings"),
    [
        *[("vbpr", kt_weight, zero, {}) for kt_weight in (0.0, 1.0) for zero in (1, 3)],
        *[(name, *pair, {}) for name in ("mgcn", "smore", "lattice") for pair in ((0.0, 3), (1.0, 1))],
        *[("freedom", *pair, {"reg_weight": 0.1}) for pair in ((0.0, 1), (1.0, 3))],
    ],
)
def test_cold_items_are_scored_by_maps_fitted_to_what_is_kept(
    tiny_project: Project, tmp_path: Path, recommender: str, settings: dict[str, Any], kt_weight: float, zero: int
) -> None:
    stage = ZeroConfig(stage=zero)  # type: ignore[arg-type]
    run = _tuned(tiny_project, tmp_path, recommender, settings, kt_weight=kt_weight, zero=stage)
    assert any(
        not torch.equal(table, load_run(tmp_path / "stage1").features[name]) for name, table in run.features.items()
    )
    cold = run.dataset.cold_items("cold_validation")
    found = run.recommender.cold_items({name: table[cold] for name, table in run.features.items()})
    np.testing.assert_allclose(found.detach().numpy(), _expected_vectors(run, cold), rtol=1e-3, atol=1e-4)
    # The history, the metrics of the finished run and the kept weights speak of the same maps.
    again = Evaluator(run.dataset, "validation")(run.recommender, run.features, _alone())
    assert (tmp_path / "stage2" / "history.jsonl").read_text().count(f"{again['cold_validation']['recall@20']}") > 0


@pytest.mark.parametrize("recommender", ["fdsa", "carca"])
def test_items_without_training_rows_are_scored_alike_between_epochs_and_at_the_end(
    tmp_path: Path, recommender: str
) -> None:
    """Leave-one-out holds no cold items out, but some items stand in no training row, and are ranked among the others."""
    catalogue = write_catalogue(tmp_path, num_items=200, num_users=24, density=0.03)
    rows = pl.read_csv(catalogue.interactions).with_columns(timestamp=pl.int_range(pl.len()).shuffle(seed=3))
    rows.write_csv(catalogue.interactions)
    pack(replace(catalogue, items=None, core=0, split="leave_one_out"))
    dataset = Dataset(catalogue.out)
    assert len(np.setdiff1d(dataset.interactions("validation").items, dataset.interactions("train").items))
    np.save(tmp_path / "text.npy", np.random.default_rng(0).normal(size=(dataset.num_items, 6)).astype(np.float32))
    features, out = tmp_path / "features", tmp_path / "run"
    extract_features(FeaturesConfig(shards=catalogue.out, out=features, text_npy=tmp_path / "text.npy"))
    model = recommender_config(recommender, dim=8)
    train_stage1(
        Stage1Config(
            shards=catalogue.out,
            features=features,
            out=out,
            recommender=recommender,
            model=model,
            epochs=3,
            batch_size=64,
            lr=0.01,
            tracking=UNTRACKED,
        )
    )
    kept = read_json(out / "run.json", "run")["kept_epoch"]
    (line,) = [line for line in read_json_lines(out / "history.jsonl", "run") if line["epoch"] == kept]
    for name, value in read_json(out / "metrics.json", "run")["validation"].items():
        assert line[f"validation.{name}"] == pytest.approx(value), name


def _alone() -> Any:
    from ptmrec_dist.distributed import join_world

    return join_world("cpu")
