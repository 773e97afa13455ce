"""What lists are like besides their accuracy, against counts by hand, list by list."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ptmrec_dist import cli
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation.beyond import group_recalls, list_properties
from ptmrec_dist.evaluation.ranking import Ranked, metrics_of
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.training.finished_run import load_run
from tests.conftest import Project

NUM_USERS, NUM_ITEMS = 30, 12
TRAIN = Interactions(
    np.random.default_rng(0).integers(0, NUM_USERS, 150),
    np.minimum(np.random.default_rng(1).integers(0, NUM_ITEMS, 150), np.random.default_rng(2).integers(0, 12, 150)),
)


def _lists() -> np.ndarray:
    rng = np.random.default_rng(3)
    lists = np.stack([rng.permutation(9)[:4] for _ in range(NUM_USERS)])  # items 9 to 11 are never recommended
    lists[5, 2:] = lists[6, 1:] = NO_ITEM
    return lists


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_lists_are_measured_as_counted_by_hand() -> None:
    lists, candidates = _lists(), np.arange(1, NUM_ITEMS)
    lists[lists == 0] = 1
    features = {name: np.random.default_rng(seed).normal(size=(NUM_ITEMS, 5)) for name, seed in (("a", 4), ("b", 5))}
    found = list_properties(lists, candidates, TRAIN, NUM_ITEMS, features)
    shown = [[int(item) for item in row if item != NO_ITEM] for row in lists]
    flat = [item for row in shown for item in row]
    counts = [flat.count(item) for item in candidates]
    popularity = [int((TRAIN.items == item).sum()) for item in range(NUM_ITEMS)]
    users = len(set(TRAIN.users.tolist()))
    assert found["coverage"] == pytest.approx(sum(count > 0 for count in counts) / 11)
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert found["gini"] == pytest.approx(differences / (2 * len(counts) * sum(counts)))
    assert found["novelty"] == pytest.approx(np.mean([-math.log2(max(popularity[item], 1) / users) for item in flat]))
    of_histories = np.mean([popularity[item] for item in TRAIN.items])
    assert found["popularity_lift"] == pytest.approx(np.mean([popularity[item] for item in flat]) / of_histories - 1)
    of_lists = []
    for table in features.values():
        pairs = [[1 - _cosine(table[a], table[b]) for a, b in combinations(row, 2)] for row in shown]
        of_lists.append(np.mean([np.mean(values) for values in pairs if values]))
    assert found["diversity"] == pytest.approx(np.mean(of_lists))


def test_lists_of_new_items_have_neither_novelty_nor_popularity_and_without_features_no_diversity() -> None:
    train = Interactions(TRAIN.users, TRAIN.items % 6)
    lists = np.array([[7, 8], [8, 7]])
    assert set(list_properties(lists, np.arange(6, 12), train, NUM_ITEMS, {})) == {"coverage", "gini"}


def test_items_without_features_count_in_no_pair() -> None:
    table = np.random.default_rng(0).normal(size=(NUM_ITEMS, 5))
    table[3] = 0
    with_it, without = (
        list_properties(np.array([row]), np.arange(NUM_ITEMS), TRAIN, NUM_ITEMS, {"image": table})["diversity"]
        for row in ([1, 2, 3], [1, 2, NO_ITEM])
    )
    assert with_it == pytest.approx(without)


def test_groups_are_thirds_of_users_and_of_items_by_their_interactions() -> None:
    rng = np.random.default_rng(6)
    users = np.repeat(np.arange(NUM_USERS), 2)
    items = np.stack([rng.permutation(NUM_ITEMS)[:2] for _ in range(NUM_USERS)]).flatten()
    ranked = Ranked(users, items, rng.integers(1, 52, len(users)))
    found = group_recalls(ranked, metrics_of(ranked), TRAIN, NUM_USERS, NUM_ITEMS)
    by_count = sorted(range(NUM_USERS), key=lambda user: int((TRAIN.users == user).sum()))
    by_popularity = sorted(set(items.tolist()), key=lambda item: int((TRAIN.items == item).sum()))
    for third, name in enumerate(("low", "middle", "high")):
        some = by_count[10 * third : 10 * third + 10]
        recalls = [np.mean([rank <= 20 for rank in ranked.ranks[users == user]]) for user in some]
        assert found[f"users_{name}"] == pytest.approx(np.mean(recalls))
        chosen = np.isin(items, by_popularity[4 * third : 4 * third + 4])
        assert found[f"items_{name}"] == pytest.approx(np.mean(ranked.ranks[chosen] <= 20))


@pytest.mark.slow
def test_evaluate_writes_and_prints_what_lists_are_like(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_project.stage1 / "beyond.json"
    try:
        assert cli.run("evaluate", ["--run", str(tiny_project.stage1), "--device", "cpu"]) == 0
        found = json.loads(path.read_text())
    finally:
        path.unlink(missing_ok=True)
    assert list(found) == ["test", "cold_test"]
    run = load_run(tiny_project.stage1)
    cold = len(run.dataset.cold_items("cold_test"))
    assert cold <= 20
    assert found["cold_test"]["coverage"] == 1.0  # all of them are in every list
    assert "popularity_lift" in found["test"]
    assert "popularity_lift" not in found["cold_test"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in found["test"])
