"""Scores of all items for users, block by block, and top-k selection.

Shape suffixes: B users to score for, C candidates, E entries, I items, K items wanted, D width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.topk import largest

NO_ITEM = -1

# Scores per block: on a CPU a block should fit into the cache, a GPU needs larger ones.
_BLOCK_SCORES = {"cpu": 2**20, "cuda": 2**27}


@torch.no_grad()
def score_blocks(
    users_BD: Tensor, items_CD: Tensor, users: np.ndarray, seen: Histories | None, columns: np.ndarray
) -> Iterator[tuple[slice, Tensor]]:
    """Score candidates for users, one block of users at a time, in a reused buffer.

    Args:
        users_BD: Vectors of the users, float32 [B, D].
        items_CD: Vectors of the candidates, float32 [C, D].
        users: Their user indices, int64 [B]; only `seen` is looked up by them.
        seen: Items to leave out: their scores are -inf.
        columns: Column of each item among the candidates, `NO_ITEM` if it is not one, int64 [I].

    Yields:
        Rows of a block, and their scores, float32 [rows, C], which the next block overwrites.

    Raises:
        UserError: A vector or a score is not finite.
    """
    _check_finite("users' vectors", users_BD)
    _check_finite("items' vectors", items_CD)
    block = max(1, _BLOCK_SCORES.get(items_CD.device.type, 2**20) // max(1, len(items_CD)))
    memory_BC = items_CD.new_empty(min(block, len(users)), len(items_CD))
    for start in range(0, len(users) if len(items_CD) else 0, block):
        rows = slice(start, min(start + block, len(users)))
        scores_BC = torch.mm(users_BD[rows], items_CD.T, out=memory_BC[: rows.stop - start])
        _check_finite("scores", scores_BC.amax(dim=1))
        if seen is not None:
            _hide(scores_BC, seen, users[rows], columns)
        yield rows, scores_BC


def choose(num_items: int, candidates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Map between candidates and columns of scores.

    Args:
        num_items: Number of items I.
        candidates: Item indices, int64; by default all.

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
    users_BD: Tensor,
    items_ID: Tensor,
    users: np.ndarray,
    seen: Histories | None,
    k: int,
    candidates: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the items with the highest scores for some users.

    Args:
        users_BD: Vectors of these users, float32 [B, D].
        items_ID: Vectors of all items, float32 [I, D].
        users: Their user indices, int64 [B]; only `seen` is looked up by them.
        seen: Items to leave out.
        k: Items per user.
        candidates: Item indices to choose from, int64 [C]; by default all.

    Returns:
        Item indices int64 [B, k] and scores float32 [B, k], best first, ties by item index. If fewer than k items are left
        for a user, the rest is `NO_ITEM` with score -inf.

    Raises:
        UserError: A vector or a score is not finite.
    """
    chosen, columns = choose(len(items_ID), candidates)
    chosen_C = torch.from_numpy(chosen).to(items_ID.device)
    items_CD = items_ID if candidates is None else items_ID[chosen_C]
    items_BK = torch.full((len(users), k), NO_ITEM, device=items_ID.device)
    scores_BK = torch.full((len(users), k), -torch.inf, device=items_ID.device)
    kept = min(k, len(chosen))
    for rows, scores_BC in score_blocks(users_BD, items_CD, users, seen, columns):
        top_scores, top_columns = _top(scores_BC, kept)
        scores_BK[rows, :kept] = top_scores
        items_BK[rows, :kept] = chosen_C[top_columns].where(top_scores > -torch.inf, NO_ITEM)
    return items_BK, scores_BK


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
