"""Splits against slow, obvious references."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.data import blocks
from ptmrec_dist.data.packing import splits
from ptmrec_dist.data.packing.splits import COLD_TEST, COLD_VALIDATION, TEST, TRAIN, VALIDATION
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
from ptmrec_dist.errors import UserError


def _users_with(*counts: int) -> np.ndarray:
    users = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(1).permutation(users)


def _counts_of(users: np.ndarray, labels: np.ndarray, user: int) -> tuple[int, int, int]:
    found = Counter(labels[users == user].tolist())
    return found[TRAIN], found[VALIDATION], found[TEST]


@pytest.mark.parametrize("count", range(1, 60))
def test_random_split_follows_the_rule_for_each_number_of_interactions(count: int) -> None:
    users = _users_with(count, 7, count)
    labels = splits.split_random(users, seed=3)
    if count < 3:
        expected = (count, 0, 0)
    elif count < 10:
        expected = (count - 2, 1, 1)
    else:
        held_out = int(0.2 * count)
        expected = (count - held_out, held_out // 2, held_out - held_out // 2)
    assert _counts_of(users, labels, 0) == _counts_of(users, labels, 2) == expected


def test_random_split_of_baby_has_the_published_counts(shared_data) -> None:
    users = pl.read_csv(shared_data("baby") / "baby.inter", separator="\t")["userID"].to_numpy()
    assert np.bincount(splits.split_random(users, seed=0)).tolist() == [118_551, 20_559, 21_682]


def test_random_split_repeats_with_its_seed_and_changes_with_another() -> None:
    users = _users_with(*[20] * 50)
    first = splits.split_random(users, seed=1)
    assert np.array_equal(first, splits.split_random(users, seed=1))
    assert not np.array_equal(first, splits.split_random(users, seed=2))


def test_random_split_holds_out_every_position_equally_often() -> None:
    users = np.repeat(np.arange(4000), 10)
    labels = splits.split_random(users, seed=0).reshape(4000, 10)
    for label in (VALIDATION, TEST):
        # Standard error of a fraction of .1 among 4,000 users: .005.
        assert np.abs((labels == label).mean(axis=0) - 0.1).max() < 0.025


def test_leave_one_out_holds_out_the_last_two_and_ties_follow_items_then_file_order() -> None:
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 40, 200), rng.integers(0, 3, 200), rng.integers(0, 4, 200).astype(float)
    expected = np.full(200, TRAIN)
    for user in set(users.tolist()):
        rows = sorted(np.flatnonzero(users == user).tolist(), key=lambda row: (times[row], items[row], row))
        if len(rows) >= 3:
            expected[rows[-1]], expected[rows[-2]] = TEST, VALIDATION
    assert np.array_equal(splits.split_leave_one_out(users, items, times), expected)


def _temporal_by_trying_all(times: list[float]) -> list[int]:
    """Of all divisions of the times into three, that with the nearest place of test, then of validation; else the earlier."""
    held_out = len(times) // 5
    places = (len(times) - held_out + held_out // 2, len(times) - held_out)

    def misplaced(starts: tuple[float, float]) -> tuple[int, ...]:
        validates, tests = (sum(time < start for time in times) for start in starts)
        return abs(tests - places[0]), tests, abs(validates - places[1]), validates

    validates, tests = min(combinations(sorted(set(times))[1:], 2), key=misplaced)
    return [TEST if time >= tests else VALIDATION if time >= validates else TRAIN for time in times]


@pytest.mark.parametrize("different", [3, 4, 6, 40, 10_000])
def test_temporal_split_is_the_nearest_to_8_1_1_that_divides_no_instant(different: int) -> None:
    rng = np.random.default_rng(different)
    for count in [3, 4, 5, 9, 10, 11, *rng.integers(20, 60, 20)]:
        # Squares: some times have many interactions, also at either end.
        times = rng.choice([-1, 1]) * (rng.random(count) ** 3 * different).astype(int) * 60.0 - 1e9
        if len(set(times)) >= 3:
            assert splits.split_temporal(times).tolist() == _temporal_by_trying_all(times.tolist())


def test_temporal_split_of_distinct_times_has_the_counts_of_a_random_split() -> None:
    times = np.random.default_rng(0).permutation(1234).astype(float)
    labels = splits.split_temporal(times)
    assert np.bincount(labels).tolist() == np.bincount(splits.split_random(np.zeros(1234, int), seed=0)).tolist()
    assert labels[np.argsort(times)].tolist() == sorted(labels.tolist())


@pytest.mark.parametrize(
    ("times", "found"), [([5.0], "1 time,"), ([5.0] * 50, "1 time,"), ([1.0, 2.0, 2.0], "2 times,")]
)
def test_temporal_split_of_less_than_three_times_is_refused(times: list[float], found: str) -> None:
    with pytest.raises(UserError, match=rf"^split: got temporal for interactions at {found} expected 3 different ones"):
        splits.split_temporal(np.array(times))


@pytest.mark.parametrize("on_disk", [False, True])
def test_large_logs_are_split_in_blocks_as_small_ones_are_at_once(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 300, 3000, dtype=np.uint16), rng.integers(0, 9, 3000), rng.random(3000)
    item_labels = splits.sample_cold_items(9, seed=1)

    def all_splits(scratch: Scratch) -> list[np.ndarray]:
        labels = splits.split_cold_items(users, items, item_labels, 1, scratch)
        return [
            splits.split_random(users, 1, scratch),
            splits.split_leave_one_out(users, items, times, scratch),
            splits.split_temporal(times, scratch),
            labels,
            splits.without_training(users, labels, scratch),
        ]

    whole = all_splits(IN_MEMORY)
    monkeypatch.setattr(blocks, "_ROWS", 100)
    assert np.array_equal(whole, all_splits(Scratch(tmp_path) if on_disk else IN_MEMORY))


def test_cold_items_are_held_out_whole_and_the_others_split_as_random() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 50, 3000), rng.integers(0, 200, 3000)
    item_labels = splits.sample_cold_items(200, seed=5)
    labels = splits.split_cold_items(users, items, item_labels, seed=5)
    assert (item_labels == COLD_VALIDATION).sum() == 10
    assert (item_labels == COLD_TEST).sum() == 30
    for cold in (COLD_VALIDATION, COLD_TEST):
        assert np.array_equal(labels == cold, item_labels[items] == cold)
    warm = item_labels[items] == TRAIN
    assert np.array_equal(labels[warm], splits.split_random(users[warm], seed=5))


def test_smallest_catalogue_still_has_a_cold_item_for_each_part() -> None:
    assert sorted(splits.sample_cold_items(3, seed=0).tolist()) == [TRAIN, COLD_VALIDATION, COLD_TEST]


def test_users_without_training_rows_are_found() -> None:
    users = np.array([0, 0, 1, 2, 2, 3])
    labels = np.array([TRAIN, TEST, TEST, COLD_TEST, VALIDATION, TRAIN])
    assert splits.without_training(users, labels).tolist() == [False, False, True, True, True, False]
