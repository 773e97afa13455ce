"""Full ranking: all items are ranked for every user, without sampled negatives.

Metrics (metrics.py) are functions of the ranks of a user's positives, averaged over the users with positives and never rounded.
Ties are broken by item index.

Shape suffixes: U users, I items, C candidates, B users of a block, G groups of candidates, P positives, S some of them, N users
with positives, K cut-off, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import CUTOFFS, METRICS, UserRanks
from ptmrec_dist.evaluation.scoring import choose, score_blocks
from ptmrec_dist.topk import group_maxima


@dataclass(frozen=True)
class Ranked:
    """Ranks of the users' positives, from which all metrics are computed."""

    users: np.ndarray
    """User of each positive, ascending, int64 [P]."""
    items: np.ndarray
    """Item of each positive, ascending within a user, int64 [P]."""
    ranks: np.ndarray
    """Rank of each positive, from 1, int64 [P]; any rank beyond the largest cut-off is stored as cut-off + 1."""


@dataclass(frozen=True)
class UserMetrics:
    """Metrics of each user, for tests of significance."""

    users: np.ndarray
    """Users with positives, ascending, int64 [N]."""
    values: dict[str, np.ndarray]
    """Metric (`recall@10`, ...) to float64 [N]."""


def rank_positives(
    users_UD: Tensor,
    items_ID: Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoff: int = max(CUTOFFS),
    candidates: np.ndarray | None = None,
    user_range: tuple[int, int] | None = None,
) -> Ranked:
    """Rank the positives of every user.

    Args:
        users_UD: User vectors, float32 [U, D].
        items_ID: Item vectors, float32 [I, D].
        positives: Relevant items of each user.
        seen: Items to leave out of the ranking, normally those of the training part.
        cutoff: Largest K.
        candidates: Item indices to rank, int64 [C]; by default all. The cold protocol ranks among the held-out items.
        user_range: First user and one past the last, to split users over ranks. By default all.

    Returns:
        Each positive of the range with its rank.

    Raises:
        UserError: A vector or a score is not finite, or positives lie outside the candidates.
    """
    first, end = (0, len(users_UD)) if user_range is None else user_range
    items_P = positives.items[positives.starts[first] : positives.starts[end]]
    if candidates is not None:
        _check_candidates(items_P, candidates)
    users_N = first + np.flatnonzero(positives.counts[first:end])
    counts_N = positives.counts_of(users_N)
    vectors_ND = users_UD[torch.from_numpy(users_N).to(users_UD.device)]
    ranks_P = _ranks(vectors_ND, items_ID, users_N, counts_N, items_P, seen, cutoff, candidates)
    return Ranked(users=np.repeat(users_N, counts_N), items=items_P, ranks=ranks_P)


def metrics_of(ranked: Ranked, cutoffs: Sequence[int] = CUTOFFS) -> UserMetrics:
    """Compute the metrics of each user.

    Args:
        ranked: All positives of these users.
        cutoffs: Values of K, at most the cut-off of the ranking.

    Returns:
        Every metric of the table, at each K, of every user.
    """
    users_N, counts_N = np.unique(ranked.users, return_counts=True)
    found = UserRanks(ranked.ranks, counts_N)
    values = {f"{name}@{k}": metric.compute(found, k) for k in cutoffs for name, metric in METRICS.items()}
    return UserMetrics(users=users_N, values=values)


def per_user_metrics(
    users_UD: Tensor,
    items_ID: Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoffs: Sequence[int] = CUTOFFS,
    candidates: np.ndarray | None = None,
    user_range: tuple[int, int] | None = None,
) -> UserMetrics:
    """Rank the positives of every user and compute the metrics of each user.

    Args:
        users_UD: As in `rank_positives`.
        items_ID: As in `rank_positives`.
        positives: As in `rank_positives`.
        seen: As in `rank_positives`.
        cutoffs: Values of K.
        candidates: As in `rank_positives`.
        user_range: As in `rank_positives`.

    Returns:
        Every metric of the table, at each K, of every user of the range that has positives.

    Raises:
        UserError: As in `rank_positives`.
    """
    ranked = rank_positives(users_UD, items_ID, positives, seen, max(cutoffs), candidates, user_range)
    return metrics_of(ranked, cutoffs)


def rank_sums(
    users_UD: Tensor,
    items_ID: Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoffs: Sequence[int] = CUTOFFS,
    candidates: np.ndarray | None = None,
    user_range: tuple[int, int] | None = None,
) -> tuple[dict[str, float], int]:
    """Sum the metrics over users, so that ranks can add their sums and counts before one division.

    Args:
        users_UD: User vectors, float32 [U, D].
        items_ID: Item vectors, float32 [I, D].
        positives: As in `per_user_metrics`.
        seen: As in `per_user_metrics`.
        cutoffs: As in `per_user_metrics`.
        candidates: As in `per_user_metrics`.
        user_range: As in `per_user_metrics`.

    Returns:
        The sum of each metric, and the number N of users with positives that it runs over.

    Raises:
        UserError: As in `per_user_metrics`.
    """
    metrics = per_user_metrics(users_UD, items_ID, positives, seen, cutoffs, candidates, user_range)
    return {name: float(values_N.sum()) for name, values_N in metrics.values.items()}, len(metrics.users)


def rank_metrics(
    users_UD: Tensor,
    items_ID: Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoffs: Sequence[int] = CUTOFFS,
    candidates: np.ndarray | None = None,
) -> dict[str, float]:
    """Average the metrics over all users with positives.

    Args:
        users_UD: User vectors, float32 [U, D].
        items_ID: Item vectors, float32 [I, D].
        positives: As in `per_user_metrics`.
        seen: As in `per_user_metrics`.
        cutoffs: As in `per_user_metrics`.
        candidates: As in `per_user_metrics`.

    Returns:
        Metric (`recall@10`, ...) to its mean.

    Raises:
        UserError: As in `per_user_metrics`, or no user has positives.
    """
    sums, count = rank_sums(users_UD, items_ID, positives, seen, cutoffs, candidates)
    if count == 0:
        raise UserError("positives: got none, expected interactions to rank for; choose a split that leaves some")
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def _ranks(
    vectors_ND: Tensor,
    items_ID: Tensor,
    users_N: np.ndarray,
    counts_N: np.ndarray,
    items_P: np.ndarray,
    seen: Histories | None,
    cutoff: int,
    candidates: np.ndarray | None,
) -> np.ndarray:
    """Rank of every positive, from 1; cut-off + 1 for those beyond the cut-off or left out of the ranking.

    The positives of a user are contiguous in `items_P`, in the order of the users.
    """
    chosen, columns = choose(len(items_ID), candidates)
    items_CD = items_ID if candidates is None else items_ID[torch.from_numpy(chosen).to(items_ID.device)]
    ends_N = np.cumsum(counts_N)
    ranks_P = np.full(len(items_P), cutoff + 1)
    for rows, scores_BC in score_blocks(vectors_ND, items_CD, users_N, seen, columns):
        own = slice(ends_N[rows.start] - counts_N[rows.start], ends_N[rows.stop - 1])
        counts_B = torch.from_numpy(counts_N[rows]).to(scores_BC.device)
        rows_P = torch.arange(len(counts_B), device=scores_BC.device).repeat_interleave(counts_B)
        columns_P = torch.from_numpy(columns[items_P[own]]).to(scores_BC.device)
        ranks_P[own] = _ranks_of_block(scores_BC, rows_P, columns_P, cutoff).cpu().numpy()
    return ranks_P


def _ranks_of_block(scores_BC: Tensor, rows_P: Tensor, columns_P: Tensor, cutoff: int) -> Tensor:
    """Rank the positives of a block in chunks of eight times its users, so that memory is bounded by the block."""
    maxima_BG, size = group_maxima(scores_BC), 8 * len(scores_BC)
    chunks = zip(rows_P.split(size), columns_P.split(size), strict=True)
    return torch.cat([_ranks_of_some(scores_BC, maxima_BG, rows, columns, cutoff) for rows, columns in chunks])


def _ranks_of_some(scores_BC: Tensor, maxima_BG: Tensor, rows_P: Tensor, columns_P: Tensor, cutoff: int) -> Tensor:
    """Count the items ranked before a positive, but only if fewer than `cutoff` groups have a larger maximum."""
    own_P1 = scores_BC[rows_P, columns_P][:, None]
    better_P = (maxima_BG[rows_P] > own_P1).sum(dim=1)
    (near,) = torch.nonzero((better_P < cutoff) & (own_P1[:, 0] > -torch.inf), as_tuple=True)
    every_C = torch.arange(scores_BC.shape[1], device=scores_BC.device)
    ranks_P = torch.full_like(rows_P, cutoff + 1)
    # A quarter of a block at a time: comparing and counting takes 16 bytes per score on a CPU.
    for some in near.split(-(-len(scores_BC) // 4)):
        scores_SC, own_S1 = scores_BC[rows_P[some]], own_P1[some]
        before_SC = (scores_SC > own_S1) | ((scores_SC == own_S1) & (every_C < columns_P[some][:, None]))
        ranks_P[some] = before_SC.sum(dim=1).clamp(max=cutoff) + 1
    return ranks_P


def _check_candidates(positives: np.ndarray, candidates: np.ndarray) -> None:
    outside = np.setdiff1d(positives, candidates)
    if len(outside):
        raise UserError(
            f"candidates: {len(outside)} items that users took are not among them (item index {outside[0]} is one); "
            "expected every positive to be a candidate, drop those interactions or add the items"
        )
