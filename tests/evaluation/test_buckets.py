"""Recall by buckets against loops over users, and back to the metric that they split."""

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.evaluation.buckets import Bucket, by_history, by_popularity
from ptmrec_dist.evaluation.ranking import Ranked, metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import table_scorer

CUTOFF = 20
USERS, ITEMS = 70, 90


@pytest.fixture(scope="module")
def ranked() -> Ranked:
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((USERS, ITEMS)) < rng.random(USERS)[:, None] ** 3)
    vectors = torch.Generator().manual_seed(0)
    scorer = table_scorer(torch.randn(USERS, 6, generator=vectors), torch.randn(ITEMS, 6, generator=vectors))
    return rank_positives(scorer, Histories(Interactions(users, items), USERS, ITEMS), None)


@pytest.fixture(scope="module")
def popularity() -> np.ndarray:
    return np.random.default_rng(1).poisson(np.random.default_rng(2).pareto(1.2, ITEMS) * 3)


@pytest.fixture(scope="module")
def history() -> np.ndarray:
    return np.random.default_rng(3).poisson(9, USERS)


def _range(bucket: Bucket) -> tuple[int, int]:
    ends = [int(end) for end in bucket.label.split("-")]
    return ends[0], ends[-1]


def test_buckets_lose_nothing_and_add_up_to_the_metric(
    ranked: Ranked, popularity: np.ndarray, history: np.ndarray
) -> None:
    whole = metrics_of(ranked).values["recall@20"].mean()
    for buckets in (by_popularity(ranked, popularity, CUTOFF), by_history(ranked, history, CUTOFF)):
        assert len(buckets) > 2
        assert sum(bucket.positives for bucket in buckets) == len(ranked.users)
        assert sum(bucket.hits for bucket in buckets) == (ranked.ranks <= CUTOFF).sum()
        assert sum(bucket.fraction for bucket in buckets) == pytest.approx(1)
        assert sum(bucket.fraction * bucket.recall for bucket in buckets) == pytest.approx(whole, rel=1e-12)
    assert sum(bucket.members for bucket in by_history(ranked, history, CUTOFF)) == len(np.unique(ranked.users))
    assert sum(bucket.members for bucket in by_popularity(ranked, popularity, CUTOFF)) == len(np.unique(ranked.items))


def test_recall_by_history_is_the_mean_over_the_users_of_the_bucket(ranked: Ranked, history: np.ndarray) -> None:
    metrics = metrics_of(ranked)
    for bucket in by_history(ranked, history, CUTOFF):
        low, high = _range(bucket)
        inside = [low <= history[user] <= high for user in metrics.users]
        assert bucket.members == sum(inside)
        assert bucket.recall == pytest.approx(metrics.values["recall@20"][inside].mean())


def test_recall_by_popularity_counts_every_user_the_same(ranked: Ranked, popularity: np.ndarray) -> None:
    for bucket in by_popularity(ranked, popularity, CUTOFF):
        low, high = _range(bucket)
        found = taken = 0.0
        for user in np.unique(ranked.users):
            own = ranked.users == user
            for item, rank in zip(ranked.items[own], ranked.ranks[own], strict=True):
                if low <= popularity[item] <= high:
                    taken += 1 / own.sum()
                    found += (rank <= CUTOFF) / own.sum()
        assert bucket.recall == pytest.approx(found / taken)


def test_equal_counts_are_in_one_bucket(ranked: Ranked) -> None:
    assert [bucket.label for bucket in by_popularity(ranked, np.full(ITEMS, 4), CUTOFF)] == ["4"]
    halves = by_history(ranked, np.arange(USERS) % 2, CUTOFF)
    assert [bucket.label for bucket in halves] == ["0", "1"]
