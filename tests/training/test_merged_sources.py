"""A merged data set: every user's ranking has the items of the user's source alone, and each source has metrics of its own."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.cli import run
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.distributed import World
from ptmrec_dist.evaluation.ranking import metrics_of
from ptmrec_dist.files import read_json, read_json_lines
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.evaluator import Evaluator, Masking, evaluate_phases
from tests.data.small_catalogue import write_catalogue

_NUMBERS = {"films": (30, 14), "books": (17, 9)}
"""Source to its items and users."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, (items, users) in _NUMBERS.items():
        config = write_catalogue(folder / name, num_items=items, num_users=users)
        rows = pl.read_csv(config.interactions)
        rows.with_columns(timestamp=pl.int_range(pl.len()).shuffle(seed=0)).write_csv(config.interactions)
        pack(dataclasses.replace(config, items=None, core=0, split="leave_one_out", out=folder / "shards" / name))
    out = folder / "pool"
    assert run("merge", [str(folder / "shards/films"), str(folder / "shards/books"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def recommender(pool: Path) -> Recommender:
    dataset = Dataset(pool)
    torch.manual_seed(0)
    built = build_recommender(
        "bpr",
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features={},
        modalities=(),
    )
    return built.eval()


def _alone() -> World:
    return World(0, 1, torch.device("cpu"))


def _recall_by_hand(dataset: Dataset, recommender: Recommender, name: str, k: int) -> np.ndarray:
    """Recall at k on validation of each user of a source, ranked among the source's items by a loop."""
    weights = dict(recommender.named_parameters())
    users_UD, items_ID = (weights[f"{side}_embeddings.weight"].detach() for side in ("user", "item"))
    train, wanted = dataset.interactions("train"), dataset.interactions("validation")
    members, values = dataset.sources[name], []
    for user in members.users:
        positives = wanted.items[wanted.users == user]
        if not len(positives):
            continue
        seen = set(train.items[train.users == user].tolist())
        scores = {item: float(users_UD[user] @ items_ID[item]) for item in members.items if item not in seen}
        best = sorted(scores, key=lambda item: (-scores[item], item))[:k]
        values.append(len(set(best) & set(positives.tolist())) / len(positives))
    return np.array(values)


def test_metrics_of_a_source_are_those_of_its_users_among_its_items(pool: Path, recommender: Recommender) -> None:
    dataset = Dataset(pool)
    metrics = Evaluator(dataset, "validation")(recommender, {}, _alone())
    assert list(metrics) == ["validation", "validation.films", "validation.books"]
    own = {name: _recall_by_hand(dataset, recommender, name, 10) for name in _NUMBERS}
    for name, values in own.items():
        assert 0 < values.mean() < 1
        assert metrics[f"validation.{name}"]["recall@10"] == pytest.approx(values.mean())
    assert metrics["validation"]["recall@10"] == pytest.approx(np.concatenate(list(own.values())).mean())


@pytest.mark.parametrize("size", [2, 3, 40])
def test_any_number_of_ranks_divides_the_users_of_all_sources(pool: Path, recommender: Recommender, size: int) -> None:
    dataset, evaluator = Dataset(pool), Evaluator(Dataset(pool), "validation")
    whole = evaluator.per_user(recommender, {})
    number = dataset.num_users
    ranges = [(number * rank // size, number * (rank + 1) // size) for rank in range(size)]
    divided = [evaluator.per_user(recommender, {}, own) for own in ranges]
    for part, found in whole.items():
        assert np.concatenate([one[part].users for one in divided]).tolist() == found.users.tolist()
        values = np.concatenate([one[part].values["ndcg@20"] for one in divided])
        assert np.array_equal(values, found.values["ndcg@20"])


def test_all_parts_are_reported_and_in_order(pool: Path, recommender: Recommender) -> None:
    found = evaluate_phases(Dataset(pool), recommender, {}, _alone(), Masking())
    parts = [f"{phase}{source}" for phase in ("validation", "test") for source in ("", ".films", ".books")]
    assert list(found) == parts


def test_a_source_without_positives_has_no_part(pool: Path, recommender: Recommender) -> None:
    dataset = Dataset(pool)
    evaluator = Evaluator(dataset, "validation")
    books = dataset.sources["books"].users
    assert evaluator.positives is not None
    evaluator.positives.starts[books.start :] = evaluator.positives.starts[books.start]
    ranked = evaluator.ranked(recommender, {})
    assert list(ranked) == ["validation", "validation.films"]
    assert metrics_of(ranked["validation"]).users.max() < books.start


@pytest.mark.slow
def test_a_run_on_a_pool_tells_each_source_in_its_metrics_history_and_report(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["--shards", str(pool), "--recommender", "sasrec", "--out", str(out), "--epochs", "1", "--model.dim", "8"]
    assert run("stage1", [*given, "--device", "cpu", "--tracking.enabled", "false"]) == 0
    parts = [f"{phase}{source}" for phase in ("validation", "test") for source in ("", ".films", ".books")]
    assert list(read_json(out / "metrics.json", "run")) == parts
    (line,) = read_json_lines(out / "history.jsonl", "run")
    assert {f"validation.{source}.recall@20" for source in _NUMBERS} <= line.keys()
    assert run("evaluate", ["--run", str(out), "--device", "cpu"]) == 0
    assert run("report", ["--runs", str(out), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(f"warm items of {source}" in page for source in _NUMBERS)
