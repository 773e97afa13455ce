"""The FAISS index against the exact search."""

from typing import Any

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.serving.index import ExactIndex, FaissIndex, write_faiss

USERS, ITEMS, WIDTH, K = 40, 3000, 16, 20


@pytest.fixture(scope="module")
def indices(faiss: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExactIndex, FaissIndex, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, WIDTH, generator=generator)
    kinds = torch.randint(30, (ITEMS,), generator=generator)
    items = centres[kinds] + 0.3 * torch.randn(ITEMS, WIDTH, generator=generator)
    users = centres[torch.arange(USERS) % 30] + 0.3 * torch.randn(USERS, WIDTH, generator=generator)
    candidates = np.flatnonzero(np.arange(ITEMS) % 10 != 3)
    path = tmp_path_factory.mktemp("index") / "index.faiss"
    write_faiss(path, items[torch.from_numpy(candidates)])
    return ExactIndex(items, candidates), FaissIndex(path, items, candidates), users


def test_most_of_the_best_items_are_found_and_none_that_was_seen_or_is_no_candidate(indices):
    exact, faiss, users = indices
    nothing = np.zeros(0, np.int64)
    best, _ = exact.search(users, Interactions(nothing, nothing), 5)
    seen = Interactions(np.arange(USERS).repeat(5), best.flatten().numpy())
    expected, expected_scores = exact.search(users, seen, K)
    found, scores = faiss.search(users, seen, K)
    assert found.shape == (USERS, K)
    assert (found % 10 != 3).all()
    assert not (
        set(zip(seen.users, seen.items)) & {(user, item) for user in range(USERS) for item in found[user].tolist()}
    )
    recalls = [len(set(ours) & set(theirs)) / K for ours, theirs in zip(found.tolist(), expected.tolist())]
    assert np.mean(recalls) > 0.9
    hit = found[:, 0] == expected[:, 0]
    torch.testing.assert_close(scores[hit, 0], expected_scores[hit, 0])
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_where_lists_hold_too_few_items_the_exact_search_fills_in(indices):
    exact, faiss, users = indices
    seen = Interactions(np.array([1, 1]), np.array([0, 1]))
    for k in (2000, 2700):
        for got, expected in zip(faiss.search(users[:3], seen, k), exact.search(users[:3], seen, k)):
            torch.testing.assert_close(got, expected)
    assert (faiss.search(users[:3], seen, 2700)[0][1] == NO_ITEM).sum() == 2
