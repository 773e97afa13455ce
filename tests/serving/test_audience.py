"""Users of an item, block by block of users, against all scores at once."""

import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.serving import audience
from ptmrec_dist.serving.audience import Audience
from ptmrec_dist.serving.vectors import UserVectors

USERS, ITEMS, DIM = 47, 9, 3


class Counted(UserVectors):
    """Vectors from a table, of which it knows how many rows are in memory."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.usable, self.computed, self.most = table, np.ones(ITEMS, bool), 0, 0
        self._there: list[weakref.ref[Tensor]] = []

    def known(self, users_B: np.ndarray) -> Tensor:
        found = self.table[torch.from_numpy(users_B)]
        self._there.append(weakref.ref(found))
        self.computed += len(found)
        self.most = max(self.most, sum(len(one) for each in self._there if (one := each()) is not None))
        return found


@pytest.fixture
def vectors() -> Counted:
    """Whole numbers, so that many scores are equal."""
    return Counted(torch.randint(-1, 2, (USERS, DIM), generator=torch.Generator().manual_seed(0)).float())


def _audience(vectors: Counted, items_ID: Tensor, taken: Interactions) -> Audience:
    score = lambda users, items: users @ items.T  # noqa: E731
    return Audience(vectors, USERS, taken, items_ID, None, np.ones(ITEMS, bool), score)


def _taken() -> Interactions:
    pairs = np.random.default_rng(1).integers(0, [[USERS], [ITEMS]], (2, 90))
    pairs = np.concatenate([pairs, [np.arange(USERS), np.full(USERS, 7)]], axis=1)  # nobody is left for item 7
    return Interactions(pairs[0], pairs[1])


@pytest.mark.parametrize("kept", [0, 2**20])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("k", [1, 5, USERS, USERS + 3])
def test_blocks_of_users_give_the_lists_of_all_scores_at_once_with_ties_by_user(
    vectors: Counted, monkeypatch: pytest.MonkeyPatch, k: int, exclude_seen: bool, kept: int
) -> None:
    monkeypatch.setattr(audience, "_BLOCK", 6)
    monkeypatch.setattr(audience, "_KEPT_BYTES", kept)
    items_ID = torch.randint(-1, 2, (ITEMS, DIM), generator=torch.Generator().manual_seed(2)).float()
    taken, asked = _taken(), [4, 7, 0, 4]
    scores_UI = vectors.table @ items_ID.T
    if exclude_seen:
        scores_UI[taken.users, taken.items] = -torch.inf
    searched = _audience(vectors, items_ID, taken)
    for _ in range(2):  # with vectors that were kept, too
        users, scores = searched.search(asked, k, exclude_seen)
        assert users.shape == scores.shape == (len(asked), k)
        for row, item in enumerate(asked):
            best = scores_UI[:, item].sort(descending=True, stable=True)
            left = int((best.values > -torch.inf).sum())
            expected = best.indices[:left].tolist() + [NO_ITEM] * (k + USERS)
            assert users[row].tolist() == expected[:k]
            assert scores[row].tolist() == (best.values[:left].tolist() + [-torch.inf] * (k + USERS))[:k]


def test_no_more_vectors_are_in_memory_than_are_kept_and_those_of_two_blocks(
    vectors: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "_BLOCK", 5)
    for kept in (0, 10):
        vectors.computed = vectors.most = 0
        monkeypatch.setattr(audience, "_KEPT_BYTES", kept * DIM * 4)
        searched = _audience(vectors, torch.ones(ITEMS, DIM), _taken())
        for _ in range(3):
            searched.search([0, 1], 4, exclude_seen=False)
        assert vectors.most <= kept + 2 * 5
        assert vectors.computed == 3 * USERS - 2 * kept
