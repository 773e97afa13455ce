"""Recall by how popular an item is, and by how much is known of a user: where a method gains and where it loses.

Every user counts the same, as in the metric itself: a positive of a user with n of them weighs 1 / n. The Recall of a bucket
is the weight of what was found of it over its weight, so the buckets' Recall, weighted with their shares, adds up to the
metric.

Shape suffixes: P positives, N users with positives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptmrec_dist.evaluation.ranking import Ranked


@dataclass(frozen=True)
class Bucket:
    """Positives that have something in common."""

    label: str
    """Range of the count, such as `3-7`."""
    members: int
    """Items or users in it that have positives."""
    positives: int
    """Positives in it."""
    hits: int
    """Those of them that are ranked among the first K."""
    share: float
    """Its weight; those of all buckets add up to 1."""
    recall: float
    """Recall@K within it."""


def by_popularity(ranked: Ranked, popularity_I: np.ndarray, cutoff: int, count: int = 5) -> list[Bucket]:
    """Split Recall@K by how many training interactions the item has.

    Args:
        ranked: Ranked positives.
        popularity_I: Training interactions of each item, int64 [I].
        cutoff: K.
        count: Most buckets; each has about as many positives.

    Returns:
        Buckets, least popular first.
    """
    values_P = popularity_I[ranked.items]
    buckets_P, labels = _cut(values_P, np.ones(len(values_P)), count)
    return _buckets(ranked, ranked.items, buckets_P, labels, cutoff)


def by_history(ranked: Ranked, history_U: np.ndarray, cutoff: int, count: int = 5) -> list[Bucket]:
    """Split Recall@K by how many training interactions the user has.

    Args:
        ranked: Ranked positives.
        history_U: Training interactions of each user, int64 [U].
        cutoff: K.
        count: Most buckets; each has about as many users.

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
                share=weight / total,
                recall=float(weights_P[inside_P & found_P].sum()) / weight,
            )
        )
    return buckets


def _weights(ranked: Ranked) -> np.ndarray:
    """1 over the number of positives that the user has, float64 [P]."""
    _, user_P, counts_N = np.unique(ranked.users, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts_N[user_P])


def _cut(values_P: np.ndarray, weights_P: np.ndarray, count: int) -> tuple[np.ndarray, Sequence[str]]:
    """Cut counts into ranges of about equal weight; equal counts stay together."""
    distinct, place_P = np.unique(values_P, return_inverse=True)
    weights = np.bincount(place_P, weights_P)
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    _, bucket = np.unique(np.minimum((middles * count).astype(int), count - 1), return_inverse=True)
    labels = []
    for number in range(bucket.max(initial=-1) + 1):
        inside = distinct[bucket == number]
        labels.append(f"{inside[0]}" if inside[0] == inside[-1] else f"{inside[0]}-{inside[-1]}")
    return bucket[place_P], labels
