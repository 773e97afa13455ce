import logging

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.training.negatives import KnownPositives, NegativeSampler


def interactions(users: int = 15, items: int = 20, count: int = 80) -> Interactions:
    rng = np.random.default_rng(0)
    # Odd items only: the others never occur.
    return Interactions(rng.integers(0, users, count), rng.integers(0, items // 2, count) * 2 + 1)


def test_known_positives_broadcast_and_equal_a_set_of_pairs() -> None:
    train = interactions()
    known = KnownPositives(train, num_items=20)
    pairs = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    got = known.contains(torch.arange(15)[:, None], torch.arange(20)[None, :])
    assert got.tolist() == [[(user, item) in pairs for item in range(20)] for user in range(15)]


def test_known_positives_of_nothing_contain_nothing() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert not KnownPositives(Interactions(none, none), 5).contains(torch.arange(3), torch.arange(3)).any()


def test_negatives_are_uniform_over_the_training_items_that_the_user_did_not_take() -> None:
    train = interactions()
    sampler = NegativeSampler(train, num_users=16)
    draws = 4000
    users = torch.arange(16).repeat_interleave(draws)
    drawn = sampler.sample(users, torch.Generator().manual_seed(0)).view(16, draws)
    for user in range(16):
        allowed = set(train.items.tolist()) - set(train.items[train.users == user].tolist())
        shares = torch.bincount(drawn[user], minlength=20) / draws
        expected = [1 / len(allowed) if item in allowed else 0.0 for item in range(20)]
        assert (shares == 0).tolist() == [share == 0 for share in expected]
        np.testing.assert_allclose(shares, expected, atol=0.04)


def test_negatives_follow_their_generator() -> None:
    sampler, users = NegativeSampler(interactions(), num_users=15), torch.arange(15).repeat(9)
    generator = torch.Generator().manual_seed(1)
    first, second = sampler.sample(users, generator), sampler.sample(users, generator)
    assert not first.equal(second)
    assert sampler.sample(users, torch.Generator().manual_seed(1)).equal(first)


def test_a_user_who_took_every_item_gets_any_item_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    train = Interactions(np.array([0, 0, 0, 1, 2]), np.array([4, 6, 7, 6, 4]))
    with caplog.at_level(logging.WARNING):
        sampler = NegativeSampler(train, num_users=3)
    assert "1 users took every training item" in caplog.text
    drawn = sampler.sample(torch.tensor([0, 1, 2]).repeat(200), torch.Generator().manual_seed(0)).view(200, 3)
    assert [sorted(set(drawn[:, user].tolist())) for user in range(3)] == [[4, 6, 7], [4, 7], [6, 7]]
