import numpy as np
import pytest

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories

USERS, ITEMS = 9, 12


@pytest.fixture
def interactions() -> Interactions:
    rng = np.random.default_rng(0)
    # Repeated pairs, users without any pair at either end and between.
    return Interactions(rng.choice([1, 2, 3, 5, 7], 80), rng.integers(0, ITEMS, 80))


def test_a_history_is_the_set_of_a_users_items_in_order(interactions: Interactions) -> None:
    histories = Histories(interactions, USERS, ITEMS)
    for user in range(USERS):
        expected = sorted(set(interactions.items[interactions.users == user].tolist()))
        assert histories.items[histories.starts[user] : histories.starts[user + 1]].tolist() == expected
        assert histories.counts[user] == histories.counts_of(np.array([user]))[0] == len(expected)
    pairs = set(zip(interactions.users.tolist(), interactions.items.tolist(), strict=True))
    assert list(zip(histories.users.tolist(), histories.items.tolist(), strict=True)) == sorted(pairs)


def test_users_are_looked_up_in_the_requested_order_also_twice_and_without_items(interactions: Interactions) -> None:
    histories = Histories(interactions, USERS, ITEMS)
    requested = np.array([7, 0, 2, 2, 8])
    found = histories.of(requested)
    for position, user in enumerate(requested):
        expected = sorted(set(interactions.items[interactions.users == user].tolist()))
        assert found.items[found.users == position].tolist() == expected
    again = Histories(found, len(requested), ITEMS)
    np.testing.assert_array_equal(again.items, found.items)
    assert len(histories.of(np.zeros(0, dtype=np.int64)).users) == 0


def test_there_may_be_no_interactions() -> None:
    nothing = Interactions(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert Histories(nothing, 3, 4).counts.tolist() == [0, 0, 0]
    assert Histories(nothing, 0, 0).starts.tolist() == [0]
