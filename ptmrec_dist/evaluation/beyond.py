r"""Properties of recommendation lists beyond accuracy: coverage, exposure, novelty, popularity, diversity, groups.

With lists of K items for U users, n_i the number of training interactions of item i, and C candidates:

- coverage: fraction of the candidates that are in some list;
- gini: Gini coefficient of the number of lists that a candidate is in, 0 if all are in equally many, 1 if one is in all;
- novelty: mean of :math:`-\log_2 (n_i / U)` over the lists, the information that a user knows the item (Vargas and Castells,
  RecSys 2011), with n_i at least 1;
- popularity_lift: mean n_i of the lists over that of the users' training items, minus 1 (Abdollahpouri et al., 2019);
- diversity: mean of 1 - cos over the pairs of a list, by the items' content (Ziegler et al., WWW 2005).

Legend: U users, K items of a list, I items, C candidates, P positives, D width of features.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation.ranking import Ranked, UserMetrics
from ptmrec_dist.evaluation.scoring import NO_ITEM

LIST_PROPERTIES = ("coverage", "gini", "novelty", "popularity_lift", "diversity")
"""Properties of lists."""
GROUPS = ("low", "middle", "high")
"""Thirds of users or of items, by their number of training interactions."""
GROUP_RECALLS = tuple(f"{kind}_{third}" for kind in ("users", "items") for third in GROUPS)
"""Names of the recalls of these groups."""
_BLOCK = 1024  # lists at a time


def list_properties(
    lists_UK: np.ndarray,
    candidates: np.ndarray,
    train: Interactions,
    num_items: int,
    features: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Measure lists of recommendations.

    Args:
        lists_UK: Item indices, int64 [U, K], best first; `NO_ITEM` where a user has no more.
        candidates: Items that could have been recommended, int64 [C].
        train: Training interactions.
        num_items: Number of items I.
        features: Modality to features of all items, float32 [I, D]; none for an ID-only recommender.

    Returns:
        The properties by name: coverage alone of empty lists; novelty and `popularity_lift` where the candidates have
        interactions, `diversity` with features.
    """
    items = lists_UK[lists_UK != NO_ITEM]
    counts_I = np.bincount(train.items, minlength=num_items)
    exposure_C = np.sort(np.bincount(items, minlength=num_items)[candidates]).astype(np.float64)
    ranks_C = np.arange(1, len(exposure_C) + 1)
    number, total = len(exposure_C), exposure_C.sum()
    found = {"coverage": float((exposure_C > 0).mean())}
    if not total:
        return found
    found["gini"] = float(2 * (ranks_C * exposure_C).sum() / (number * total) - (number + 1) / number)
    if counts_I[candidates].any():
        num_users = len(np.unique(train.users))
        found["novelty"] = float(-np.log2(np.maximum(counts_I[items], 1) / num_users).mean())
        found["popularity_lift"] = float(counts_I[items].mean() / counts_I[train.items].mean() - 1)
    if features:
        found["diversity"] = float(np.mean([_diversity(lists_UK, table_ID) for table_ID in features.values()]))
    return found


def group_recalls(
    ranked: Ranked, per_user: UserMetrics, train: Interactions, num_users: int, num_items: int, k: int = 20
) -> dict[str, float]:
    """Measure recall of groups of users, and of groups of items.

    Args:
        ranked: Positives and their ranks.
        per_user: Metrics of their users.
        train: Training interactions.
        num_users: Number of users.
        num_items: Number of items.
        k: Cut-off of the recall.

    Returns:
        `users_low`, ...: mean Recall@K of a third of the users; `items_low`, ...: fraction of the positives that are found, of
        a third of the items that positives are of. Thirds are by training interactions; empty ones are left out.
    """
    of_users = _thirds(np.bincount(train.users, minlength=num_users)[per_user.users])
    recalls_N = per_user.values[f"recall@{k}"]
    found = {f"users_{name}": value for name, value in _means(recalls_N, of_users)}
    positive_items, places_P = np.unique(ranked.items, return_inverse=True)
    of_items = _thirds(np.bincount(train.items, minlength=num_items)[positive_items])[places_P]
    return found | {f"items_{name}": value for name, value in _means(ranked.ranks <= k, of_items)}


def _diversity(lists_UK: np.ndarray, table_ID: np.ndarray) -> float:
    """Mean over users of the mean of 1 - cos over the pairs of their lists, from the length of the sum of unit vectors."""
    lengths_I1 = np.linalg.norm(table_ID, axis=1, keepdims=True)
    unit_ID = table_ID / np.maximum(lengths_I1, 1e-12)
    has_I = lengths_I1[:, 0] > 0
    sums, number = 0.0, 0
    for block_BK in np.array_split(lists_UK, -(-len(lists_UK) // _BLOCK)):
        there_BK = (block_BK != NO_ITEM) & has_I[block_BK]
        counts_B = there_BK.sum(axis=1)
        total_BD = (unit_ID[block_BK] * there_BK[:, :, None]).sum(axis=1)
        pairs_B = counts_B * (counts_B - 1)
        several = pairs_B > 0
        cosines_B = ((total_BD**2).sum(axis=1) - counts_B)[several] / pairs_B[several]
        sums, number = sums + float((1 - cosines_B).sum()), number + int(several.sum())
    return sums / max(number, 1)


def _means(values_N: np.ndarray, thirds_N: np.ndarray) -> Iterator[tuple[str, float]]:
    """Mean of each third that has entries; with fewer than three entries some have none."""
    for third, name in enumerate(GROUPS):
        if (thirds_N == third).any():
            yield name, float(values_N[thirds_N == third].mean())


def _thirds(counts_N: np.ndarray) -> np.ndarray:
    """Third of each entry, 0 to 2, by its rank; entries of equal counts are divided by their order."""
    ranks_N = np.empty(len(counts_N), dtype=np.int64)
    ranks_N[np.argsort(counts_N, kind="stable")] = np.arange(len(counts_N))
    return ranks_N * 3 // max(len(counts_N), 1)
