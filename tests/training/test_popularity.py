"""What ranking by popularity has, against sorting and counting user by user."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist import cli
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.distributed import World
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.evaluator import Masking, evaluate_phases
from ptmrec_dist.training.popularity import PopularityEvaluator
from tests.conftest import Project
from tests.data.small_catalogue import write_catalogue

K = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("popularity")
    config = write_catalogue(folder, num_items=30, num_users=40)
    rows = pl.read_csv(config.interactions)
    rows.with_columns(timestamp=pl.int_range(pl.len()).shuffle(seed=0)).write_csv(config.interactions)
    pack(dataclasses.replace(config, items=None, core=0, split="leave_one_out", out=folder / "shards"))
    return Dataset(folder / "shards")


def _built(dataset: Dataset, name: str) -> Recommender:
    return build_recommender(
        name,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features={},
        modalities=(),
    )


def _by_hand(dataset: Dataset, part: str, seen_parts: tuple[str, ...], items: list[int]) -> dict[str, float]:
    """Recall and MRR of a part."""
    train, wanted = dataset.interactions("train").items.tolist(), dataset.interactions(part)
    found = []
    for user in sorted(set(wanted.users.tolist())):
        positives = set(wanted.items[wanted.users == user].tolist())
        known = [dataset.interactions(name) for name in seen_parts]
        seen = {int(item) for pairs in known for item in pairs.items[pairs.users == user]}
        best = sorted(set(items) - seen, key=lambda item: (-train.count(item), item))[:K]
        hits = [rank for rank, item in enumerate(best, start=1) if item in positives]
        found.append((len(hits) / len(positives), 1 / hits[0] if hits else 0.0))
    return dict(zip((f"recall@{K}", f"mrr@{K}"), np.mean(found, axis=0), strict=True))


_MASKS = [
    ("bpr", Masking(), ("train",)),
    ("bpr", Masking(history=False), ()),
    ("bpr", Masking(validation=True), ("train", "validation")),
    ("sasrec", Masking(), ("train", "validation")),
]


@pytest.mark.parametrize(("name", "masking", "seen"), _MASKS)
def test_items_are_ranked_by_training_interactions_without_what_the_models_evaluation_leaves_out(
    dataset: Dataset, name: str, masking: Masking, seen: tuple[str, ...]
) -> None:
    world = World(0, 1, torch.device("cpu"))
    found = evaluate_phases(dataset, _built(dataset, name), {}, world, masking, PopularityEvaluator)
    assert list(found) == ["validation", "test"]
    for part in found:
        known = tuple(one for one in seen if one != part)
        for metric, value in _by_hand(dataset, part, known, list(range(dataset.num_items))).items():
            assert found[part][metric] == pytest.approx(value), (part, metric)


@pytest.mark.slow
def test_evaluate_prints_it_below_the_runs_own_and_leaves_cold_parts_out(
    tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    run, written = tiny_project.stage1, ("popularity.json", "beyond.json")
    before = (run / "metrics.json").read_text()
    try:
        assert cli.run("evaluate", ["--run", str(run), "--device", "cpu"]) == 0
        found = json.loads((run / "popularity.json").read_text())
    finally:
        for name in written:
            (run / name).unlink(missing_ok=True)
    own = json.loads((run / "metrics.json").read_text())
    for part, values in json.loads(before).items():
        assert own[part] == pytest.approx(values, abs=1e-6)
    assert list(found) == ["validation", "test"]
    assert found["test"].keys() == own["test"].keys()
    dataset = Dataset(tiny_project.shards)
    cold = {item for part in ("cold_validation", "cold_test") for item in dataset.cold_items(part).tolist()}
    warm = [item for item in range(dataset.num_items) if item not in cold]
    for part in found:
        for metric, value in _by_hand(dataset, part, ("train",), warm).items():
            assert found[part][metric] == pytest.approx(value), (part, metric)
    printed = capsys.readouterr().out
    _, title, table = printed.partition("ranking items by number of training interactions")
    assert title
    assert f"{found['test']['recall@10']:.4f}" in table
    assert max(map(len, printed.splitlines())) <= 80
