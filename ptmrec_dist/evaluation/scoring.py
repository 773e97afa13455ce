"""Scores of all items for users, block by block, and top-k selection.

Shape suffixes: B users to score for, C candidates, U users, I items, K items wanted, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.histories import Histories, RecentItems
from ptmrec_dist.distributed import sum_over_ranks
from ptmrec_dist.distributed.rows import RowTable
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Queries, Recommender, Tables
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.topk import largest

NO_ITEM = -1

# Scores per block: on a CPU a block should fit into the cache, a GPU needs larger ones.
_BLOCK_SCORES = {"cpu": 2**20, "cuda": 2**27}
_ALIGNED = 64  # a block's users are a multiple: rows of memory that start at odd places make products slower
_BLOCK_USERS = 4096  # whose vectors are computed at once


def dot_product(users_BD: Tensor, items_CD: Tensor) -> Tensor:
    """Score items for users by the dot product of their vectors.

    Args:
        users_BD: float32 [B, D].
        items_CD: float32 [C, D].

    Returns:
        float32 [B, C].
    """
    return users_BD @ items_CD.T


Score = Callable[[Tensor, Tensor], Tensor]
"""Vectors of users, float32 [B, D], and of items [C, D] to scores [B, C], in memory of their own."""


@dataclass(frozen=True)
class Scorer:
    """Users, whose vectors are computed block by block, items, and the score of a pair."""

    users: Callable[[np.ndarray], Tensor]
    """User indices, int64 [B], to their vectors, float32 [B, D]."""
    items: Tensor
    """Vectors of all items, float32 [I, D], or where they are cut over ranks those of this rank's."""
    score: Score = dot_product
    """Score of users and items."""
    cut: RowTable | None = None
    """Where items are cut over ranks, how: all ranks then score the same users, each for its own items, and `users` is
    collective. By default this process has all items."""

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return len(self.items) if self.cut is None else self.cut.num_embeddings

    @property
    def first(self) -> int:
        """The item of the first row of `items`."""
        return 0 if self.cut is None else self.cut.own.start

    def own(self, candidates: np.ndarray | None) -> np.ndarray | None:
        """Restrict candidates to the items of this rank.

        Args:
            candidates: Item indices, int64; None for all.

        Returns:
            Item indices, int64; None for all, which are here.
        """
        if self.cut is None:
            return candidates
        own_R = np.arange(self.first, self.first + len(self.items))
        return own_R if candidates is None else np.intersect1d(candidates, own_R)

    def total(self, values: Tensor) -> Tensor:
        """Sum what each rank found for its own items.

        Collective where items are cut over ranks: every rank must call this.

        Args:
            values: Any shape, the same on every rank.

        Returns:
            The sum over all items.
        """
        return values if self.cut is None else sum_over_ranks(values)

    @torch.no_grad()
    def blocks(
        self, users_B: np.ndarray, chosen: np.ndarray, columns: np.ndarray, seen: Histories | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Score candidates for users, one block of users at a time.

        Args:
            users_B: User indices, int64 [B].
            chosen: Item of each column, ascending, int64 [C]; where items are cut over ranks, of this rank alone.
            columns: Column of each item among the candidates, `NO_ITEM` if it is not one, int64 [I].
            seen: Items to leave out: their scores are -inf.

        Yields:
            Positions of a block in `users_B`, and their scores, float32 [rows, C], which the next block overwrites.

        Raises:
            UserError: A vector or a score is not finite.
        """
        if not len(chosen) and self.cut is None:
            return
        items_CD = self.items
        if len(chosen) < len(items_CD):
            items_CD = items_CD[torch.from_numpy(chosen - self.first).to(items_CD.device)]
        _check_finite("items' vectors", items_CD)
        widest = len(items_CD) if self.cut is None else self.cut.most  # ranks read the same blocks of users
        block = max(1, _BLOCK_SCORES.get(items_CD.device.type, 2**20) // widest // _ALIGNED) * _ALIGNED
        memory_BC = _memory_of_scores(items_CD, min(block, len(users_B))) if self.score is dot_product else None
        for start, vectors_BD in self._vectors(users_B, block):
            for some_BD in vectors_BD.split(block):
                if memory_BC is None:
                    scores_BC = self.score(some_BD, items_CD)
                else:
                    scores_BC = torch.mm(some_BD, items_CD.T, out=memory_BC[: len(some_BD)])
                _check_finite("scores", scores_BC.amax(dim=1) if len(items_CD) else scores_BC)
                rows = slice(start, start + len(some_BD))
                if seen is not None:
                    _hide(scores_BC, seen, users_B[rows], columns)
                yield rows, scores_BC
                start = rows.stop

    def _vectors(self, users_B: np.ndarray, block: int) -> Iterator[tuple[int, Tensor]]:
        """Vectors of some blocks of users at a time, and the position of the first."""
        size = block * max(1, _BLOCK_USERS // block)
        for start in range(0, len(users_B), size):
            vectors_BD = self.users(users_B[start : start + size])
            _check_finite("users' vectors", vectors_BD)
            yield start, vectors_BD


def table_scorer(users_UD: Tensor, items_ID: Tensor, score: Score = dot_product) -> Scorer:
    """Score items for users whose vectors have been computed.

    Args:
        users_UD: Vectors of users, float32 [U, D].
        items_ID: Vectors of all items, float32 [I, D].
        score: Score of users and items.

    Returns:
        The scorer.
    """
    return Scorer(lambda users_B: users_UD[torch.from_numpy(users_B).to(users_UD.device)], items_ID, score)


def scorer_of(recommender: Recommender, features: Features, recent: RecentItems | None) -> Scorer:
    """Let a recommender score all items for any users.

    Args:
        recommender: The model; put it into evaluation mode first.
        features: Features of all items, [I, d_m], on the model's device; where items are cut over ranks of this rank's.
        recent: What `recent_items` returned for it.

    Returns:
        The full score.
    """
    with torch.no_grad():
        tables = recommender.tables(features)
        items_ID = recommender.items(features, tables)
    score = recommender.score if recommender.has_own_score else dot_product
    return Scorer(user_vectors(recommender, tables, recent, items_ID.device), items_ID, score, recommender.cut_items)


def user_vectors(
    recommender: Recommender, tables: Tables, recent: RecentItems | None, device: torch.device
) -> Callable[[np.ndarray], Tensor]:
    """Let a recommender compute vectors of users.

    Args:
        recommender: The model.
        tables: What its `tables` returned.
        recent: What `recent_items` returned for it.
        device: Where the model is.

    Returns:
        A function from user indices, int64 [B], to vectors, float32 [B, D].
    """

    @torch.no_grad()
    def vectors(users_B: np.ndarray) -> Tensor:
        users = torch.from_numpy(users_B).to(device)
        return recommender.users(Queries(users, recent.latest(users) if recent is not None else None), tables)

    return vectors


def recent_items(
    recommender: Recommender, dataset: Dataset, parts: tuple[str, ...], device: torch.device
) -> RecentItems | None:
    """Read the histories of users, if a recommender asks for them.

    Args:
        recommender: The model.
        dataset: The packed data set.
        parts: Parts of the data set that histories may contain.
        device: Where the model is.

    Returns:
        The most recent items of every user, as many as the recommender reads; None if a user is an index.
    """
    if not recommender.history_length:
        return None
    return RecentItems(dataset.sequences(*parts), dataset.num_users, recommender.history_length, device)


def choose(num_items: int, candidates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Map between candidates and columns of scores.

    Args:
        num_items: Number of items I.
        candidates: Item indices, int64 [C]; by default all.

    Returns:
        Item of each column, ascending, int64 [C], and column of each item, `NO_ITEM` if it has none, int64 [I].
    """
    is_chosen = np.full(num_items, candidates is None)
    if candidates is not None:
        is_chosen[candidates] = True
    chosen, columns = np.flatnonzero(is_chosen), np.full(num_items, NO_ITEM)
    columns[chosen] = np.arange(len(chosen))
    return chosen, columns


@torch.no_grad()
def top_items(
    scorer: Scorer, users_B: np.ndarray, seen: Histories | None, k: int, candidates: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Find the items with the highest scores for some users.

    Args:
        scorer: Users, items, and their score.
        users_B: User indices, int64 [B].
        seen: Items to leave out.
        k: Items per user.
        candidates: Item indices to choose from, int64 [C]; by default all.

    Returns:
        Item indices int64 [B, k] and scores float32 [B, k], best first, ties by item index. If fewer than k items are left
        for a user, the rest is `NO_ITEM` with score -inf.

    Raises:
        UserError: A vector or a score is not finite.
    """
    chosen, columns = choose(len(scorer.items), candidates)
    chosen_C = torch.from_numpy(chosen).to(scorer.items.device)
    items_BK = torch.full((len(users_B), k), NO_ITEM, device=scorer.items.device)
    scores_BK = torch.full((len(users_B), k), -torch.inf, device=scorer.items.device)
    kept = min(k, len(chosen))
    for rows, scores_BC in scorer.blocks(users_B, chosen, columns, seen):
        top_scores, top_columns = _top(scores_BC, kept)
        scores_BK[rows, :kept] = top_scores
        items_BK[rows, :kept] = chosen_C[top_columns].where(top_scores > -torch.inf, NO_ITEM)
    return items_BK, scores_BK


def _memory_of_scores(items_CD: Tensor, users: int) -> Tensor:
    """Uninitialised memory of a block's scores, [B, C], to be used again and again, which saves a quarter of the time.

    The scores of an item are contiguous: with many more items than users, a CPU multiplies up to twice as fast.
    """
    return items_CD.new_empty(len(items_CD), users).T


def _hide(scores_BC: Tensor, seen: Histories, users: np.ndarray, columns: np.ndarray) -> None:
    entries = seen.of(users)
    shown = columns[entries.items] != NO_ITEM
    indices = np.stack([entries.users[shown], columns[entries.items[shown]]])
    row_indices, column_indices = torch.from_numpy(indices).to(scores_BC.device)
    scores_BC[row_indices, column_indices] = -torch.inf


def _top(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # topk breaks ties arbitrarily: the (k+1)-th score shows in which rows that matters.
    scores, columns = largest(scores_BC, min(k + 1, scores_BC.shape[1]))
    columns, order = columns.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if scores.shape[1] > k:
        last = scores[:, k - 1]
        (tied,) = torch.nonzero((last == scores[:, k]) & (last > -torch.inf), as_tuple=True)
        # A sixteenth of the rows at a time: sorting takes 28 bytes per score, and all rows of a constant model tie.
        for some in tied.split(-(-len(scores_BC) // 16)):
            ranked = scores_BC[some].sort(dim=1, descending=True, stable=True)
            scores[some, :k], columns[some, :k] = ranked.values[:, :k], ranked.indices[:, :k]
    return scores[:, :k], columns[:, :k]


def _check_finite(name: str, values: Tensor) -> None:
    # Minimum and maximum suffice, in one pass without a temporary: both propagate NaN.
    if values.numel() and not torch.isfinite(torch.stack(torch.aminmax(values))).all():
        bad = int((~torch.isfinite(values)).sum())
        raise UserError(
            f"{name}: {bad} of the model's {values.numel()} values are NaN or infinite, expected finite ones; "
            "lower the learning rate and check the features"
        )
