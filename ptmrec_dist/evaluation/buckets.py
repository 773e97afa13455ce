"""Recall by item popularity and by length of user history, to show where a method gains and where it loses.

Every user has equal weight, as in the metric itself: a positive of a user with n of them has weight 1 / n. The Recall of a
bucket is the weight of its hits divided by its total weight, so that the mean of the buckets' Recall, weighted by their
fractions of the total weight, is the metric.

Shape suffixes: P positives, N users with positives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptmrec_dist.evaluation.ranking import Ranked


@dataclass(frozen=True)
class Bucket:
    """Positives whose items or users have similar counts."""

    label: str
    """Range of the count, such as `3-7`."""
    members: int
    """Items or users in it that have positives."""
    positives: int
    """Positives in it."""
    hits: int
    """Those of them that are ranked among the first K."""
    fraction: float
    """Its fraction of the total weight; the fractions of all buckets add up to 1."""
    recall: float
    """Recall@K within it."""


def by_popularity(ranked: Ranked, popularity_I: np.ndarray, cutoff: int, count: int = 5) -> list[Bucket]:
    """Split Recall@K by the item's number of training interactions.

    Args:
        ranked: Ranked positives.
        popularity_I: Training interactions of each item, int64 [I].
        cutoff: K.
        count: Maximum number of buckets, of about equal numbers of positives.

    Returns:
        Buckets, least popular first.
    """
    values_P = popularity_I[ranked.items]
    buckets_P, labels = _cut(values_P, np.ones(len(values_P)), count)
    return _buckets(ranked, ranked.items, buckets_P, labels, cutoff)


def by_history(ranked: Ranked, history_U: np.ndarray, cutoff: int, count: int = 5) -> list[Bucket]:
    """Split Recall@K by the user's number of training interactions.

    Args:
        ranked: Ranked positives.
        history_U: Training interactions of each user, int64 [U].
        cutoff: K.
        count: Maximum number of buckets, of about equal numbers of users.

    Returns:
        Buckets, shortest history first.
    """
    buckets_P, labels = _cut(history_U[ranked.users], _weights(ranked), count)
    return _buckets(ranked, ranked.users, buckets_P, labels, cutoff)


def _buckets(
    ranked: Ranked, members_P: np.ndarray, buckets_P: np.ndarray, labels: Sequence[str], cutoff: int
) -> list[Bucket]:
    weights_P, found_P = _weights(ranked), ranked.ranks <= cutoff
    total, buckets = weights_P.sum(), []
    for number, label in enumerate(labels):
        inside_P = buckets_P == number
        weight = float(weights_P[inside_P].sum())
        buckets.append(
            Bucket(
                label=label,
                members=len(np.unique(members_P[inside_P])),
                positives=int(inside_P.sum()),
                hits=int((inside_P & found_P).sum()),
                fraction=weight / total,
                recall=float(weights_P[inside_P & found_P].sum()) / weight,
            )
        )
    return buckets


def _weights(ranked: Ranked) -> np.ndarray:
    """1 / number of the user's positives, float64 [P]."""
    _, user_P, counts_N = np.unique(ranked.users, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts_N[user_P])


def _cut(values_P: np.ndarray, weights_P: np.ndarray, count: int) -> tuple[np.ndarray, Sequence[str]]:
    """Cut counts into ranges of about equal weight; equal counts are in one range."""
    distinct, index_P = np.unique(values_P, return_inverse=True)
    weights = np.bincount(index_P, weights_P)
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    _, bucket = np.unique(np.minimum((middles * count).astype(int), count - 1), return_inverse=True)
    labels = []
    for number in range(bucket.max(initial=-1) + 1):
        inside = distinct[bucket == number]
        labels.append(f"{inside[0]}" if inside[0] == inside[-1] else f"{inside[0]}-{inside[-1]}")
    return bucket[index_P], labels
