"""Work in blocks, against the same at once."""

from pathlib import Path

import numpy as np
import pytest

from ptmrec_dist.data import blocks
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch


@pytest.fixture(params=["memory", "disk"])
def scratch(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    monkeypatch.setattr(blocks, "_ROWS", 100)
    return Scratch(tmp_path) if request.param == "disk" else IN_MEMORY


def test_blocks_hold_each_interaction_once() -> None:
    found = list(blocks.slices_of(2**20 + 3))
    assert [(block.start, block.stop) for block in found] == [(0, 2**20), (2**20, 2**20 + 3)]
    assert list(blocks.slices_of(0)) == []
    assert list(blocks.slices_of(2**21, 2**21)) == [slice(0, 2**21)]


def test_counts_are_those_of_all_interactions(scratch: Scratch) -> None:
    numbers = np.random.default_rng(0).integers(0, 300, 3000)
    assert np.array_equal(blocks.counts_of(numbers, 400), np.bincount(numbers, minlength=400))


@pytest.mark.parametrize("longest", [1, 700])
def test_all_interactions_of_a_user_are_seen_at_once_in_their_order(scratch: Scratch, longest: int) -> None:
    """Also of one who has more than a block."""
    rng = np.random.default_rng(0)
    users = rng.permutation(np.concatenate([rng.integers(0, 300, 3000), np.full(longest, 150)]))
    rows, seen = np.arange(len(users)), []

    def place_of_row(users_R: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
        seen.append(len(users_R))
        places = np.empty(len(users_R), dtype=np.int64)
        for user in set(users_R.tolist()):
            mine = users_R == user
            assert rows_R[mine].tolist() == np.flatnonzero(users == user).tolist()
            places[mine] = np.arange(mine.sum())
        return places

    counts = np.bincount(users, minlength=310)
    found = blocks.for_users(place_of_row, users, [rows], counts, np.int64, scratch)
    assert found.tolist() == [int((users[:row] == user).sum()) for row, user in enumerate(users)]
    assert len(seen) > 20
    assert max(seen) < 100 + counts.max()


@pytest.mark.parametrize("length", [0, 1, 100, 101, 250, 1000])
def test_the_inverse_of_a_permutation_is_where_each_number_is(scratch: Scratch, length: int) -> None:
    permutation = np.random.default_rng(0).permutation(length).astype(np.min_scalar_type(length))
    inverse = blocks.inverse_of(permutation, scratch)
    assert inverse.tolist() == [permutation.tolist().index(number) for number in range(length)]
