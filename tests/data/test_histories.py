import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories, PaddedHistories, RecentItems, grouped

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


def padded(items: list[int], length: int) -> list[int | None]:
    """The last items of a list, with None before them."""
    return ([None] * length + items)[-length:]


def shown(found: PaddedHistories) -> list[list[int | None]]:
    rows = zip(found.items.tolist(), found.mask.tolist(), strict=True)
    return [[item if there else None for item, there in zip(*row, strict=True)] for row in rows]


@pytest.mark.parametrize("length", [1, 3, 200])
def test_recent_items_are_a_users_last_ones_in_time_order_and_stop_before_an_interaction_that_is_predicted(
    interactions: Interactions, length: int
) -> None:
    recent = RecentItems(interactions, USERS, length)
    taken = [interactions.items[interactions.users == user].tolist() for user in range(USERS)]
    users = [7, 0, 2, 2, 8]
    assert shown(recent.latest(torch.tensor(users))) == [padded(taken[user], length) for user in users]
    rows = [79, 0, 41, 41, 12]
    before = [interactions.items[:row][interactions.users[:row] == interactions.users[row]].tolist() for row in rows]
    assert shown(recent.before(torch.tensor(rows))) == [padded(items, length) for items in before]


def test_without_interactions_recent_items_are_all_padding() -> None:
    nothing = Interactions(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert shown(RecentItems(nothing, 2, 3).latest(torch.tensor([1, 0]))) == [[None] * 3] * 2


def test_grouped_entries_of_a_key_stay_in_their_order(interactions: Interactions) -> None:
    order, starts = grouped(interactions.users, USERS)
    for user in range(USERS):
        assert order[starts[user] : starts[user + 1]].tolist() == np.flatnonzero(interactions.users == user).tolist()
    assert starts[-1] == len(order) == 80
