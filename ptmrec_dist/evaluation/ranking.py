"""Full ranking: all items are ranked for every user, without sampled negatives.

Metrics (metrics.py) are functions of the ranks of a user's positives, averaged over the users with positives and never rounded.
Ties are broken by item index.

Shape suffixes: U users, I items, C candidates, B users of a block, G groups of candidates, P positives, S some of them, N users
with positives, K cut-off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import CUTOFFS, METRICS
from ptmrec_dist.evaluation.scoring import NO_ITEM, Scorer, choose
from ptmrec_dist.evaluation.user_ranks import UserRanks
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

    def of(self, first: int, end: int) -> "Ranked":
        """Select the positives of some users.

        Args:
            first: First user.
            end: One past the last user.

        Returns:
            Their positives.
        """
        rows = slice(*np.searchsorted(self.users, [first, end]))
        return Ranked(self.users[rows], self.items[rows], self.ranks[rows])


@dataclass(frozen=True)
class UserMetrics:
    """Metrics of each user, for tests of significance."""

    users: np.ndarray
    """Users with positives, ascending, int64 [N]."""
    values: dict[str, np.ndarray]
    """Metric (`recall@10`, ...) to float64 [N]."""


def rank_positives(
    scorer: Scorer,
    positives: Histories,
    seen: Histories | None,
    cutoff: int = max(CUTOFFS),
    candidates: np.ndarray | None = None,
    user_range: tuple[int, int] | None = None,
) -> Ranked:
    """Rank the positives of every user.

    Collective where the scorer's items are cut over ranks: every rank must call this, with the same users.

    Args:
        scorer: Users, items, and their score.
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
    first, end = (0, positives.num_users) if user_range is None else user_range
    items_P = positives.items[positives.starts[first] : positives.starts[end]]
    if candidates is not None:
        _check_candidates(items_P, candidates)
    users_N = first + np.flatnonzero(positives.counts[first:end])
    counts_N = positives.counts_of(users_N)
    ranks_P = _ranks(scorer, users_N, counts_N, items_P, seen, cutoff, candidates)
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


def _ranks(
    scorer: Scorer,
    users_N: np.ndarray,
    counts_N: np.ndarray,
    items_P: np.ndarray,
    seen: Histories | None,
    cutoff: int,
    candidates: np.ndarray | None,
) -> np.ndarray:
    """Rank of every positive, from 1; cut-off + 1 for those beyond the cut-off or left out of the ranking.

    The positives of a user are contiguous in `items_P`, in the order of the users. Where items are cut over ranks, each rank
    counts those of its own that are ranked before a positive; the column of an item of another rank is where it would be.
    """
    chosen, columns = choose(scorer.num_items, scorer.own(candidates))
    ends_N = np.cumsum(counts_N)
    ranks_P = np.full(len(items_P), cutoff + 1)
    for rows, scores_BC in scorer.blocks(users_N, chosen, columns, seen):
        own = slice(ends_N[rows.start] - counts_N[rows.start], ends_N[rows.stop - 1])
        counts_B = torch.from_numpy(counts_N[rows]).to(scores_BC.device)
        rows_P = torch.arange(len(counts_B), device=scores_BC.device).repeat_interleave(counts_B)
        columns_P = torch.from_numpy(np.searchsorted(chosen, items_P[own])).to(scores_BC.device)
        own_P = scores_BC.new_zeros(len(rows_P))
        is_here_P = torch.from_numpy(columns[items_P[own]] != NO_ITEM).to(scores_BC.device)
        own_P[is_here_P] = scores_BC[rows_P[is_here_P], columns_P[is_here_P]]
        before_P = _before(scores_BC, scorer.total(own_P), rows_P, columns_P, cutoff)
        ranks_P[own] = scorer.total(before_P).clamp(max=cutoff).cpu().numpy() + 1
    return ranks_P


def _before(scores_BC: Tensor, own_P: Tensor, rows_P: Tensor, columns_P: Tensor, cutoff: int) -> Tensor:
    """Count the items ranked before each positive, in chunks of eight times a block's users, so that it bounds memory."""
    if not scores_BC.shape[1]:
        return torch.zeros_like(rows_P)
    maxima_BG, size = group_maxima(scores_BC), 8 * len(scores_BC)
    chunks = zip(own_P.split(size), rows_P.split(size), columns_P.split(size), strict=True)
    return torch.cat([_before_some(scores_BC, maxima_BG, *chunk, cutoff) for chunk in chunks])


def _before_some(
    scores_BC: Tensor, maxima_BG: Tensor, own_P: Tensor, rows_P: Tensor, columns_P: Tensor, cutoff: int
) -> Tensor:
    """Count at most `cutoff` items, and one by one only if fewer groups than that have a larger maximum."""
    own_P1 = own_P[:, None]
    better_P = (maxima_BG[rows_P] > own_P1).sum(dim=1)
    (near,) = torch.nonzero((better_P < cutoff) & (own_P > -torch.inf), as_tuple=True)
    every_C = torch.arange(scores_BC.shape[1], device=scores_BC.device)
    before_P = torch.full_like(rows_P, cutoff)
    # A quarter of a block at a time: comparing and counting takes 16 bytes per score on a CPU.
    for some in near.split(-(-len(scores_BC) // 4)):
        scores_SC, own_S1 = scores_BC[rows_P[some]], own_P1[some]
        before_SC = (scores_SC > own_S1) | ((scores_SC == own_S1) & (every_C < columns_P[some][:, None]))
        before_P[some] = before_SC.sum(dim=1).clamp(max=cutoff)
    return before_P


def _check_candidates(positives: np.ndarray, candidates: np.ndarray) -> None:
    outside = np.setdiff1d(positives, candidates)
    if len(outside):
        raise UserError(
            f"candidates: {len(outside)} items that users took are not among them (item index {outside[0]} is one); "
            "expected every positive to be a candidate, drop those interactions or add the items"
        )
