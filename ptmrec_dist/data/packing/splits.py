"""Splits: which interactions are for training, validation and test. Pure functions of numbers, no files.

Shape suffixes: E interactions, R those of a block, U users, I items.
"""

from collections.abc import Iterator

import numpy as np

from ptmrec_dist.data.blocks import computed, counts_of, for_users, inverse_of, slices_of
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
from ptmrec_dist.errors import UserError

TRAIN, VALIDATION, TEST, COLD_VALIDATION, COLD_TEST = range(5)
"""Labels: indices into the names of the parts."""
_ROW_STREAM, _ITEM_STREAM = 0, 1
"""Each use of the seed has a random stream of its own, so that no two uses sample in the same order."""
_COLD_FRACTIONS = {COLD_VALIDATION: 0.05, COLD_TEST: 0.15}


def split_random(users_E: np.ndarray, seed: int, scratch: Scratch = IN_MEMORY) -> np.ndarray:
    """Divide each user's interactions 8:1:1 at random, as is common in the literature.

    Of n interactions of a user n // 5 are held out, half of them (rounded down) for validation and the others for test;
    of less than 10 one for each; of less than 3 none. The permutation that decides is in memory, 4 bytes an interaction (8 from
    4.3 billion on): NumPy shuffles at random places.

    Args:
        users_E: User of each interaction, integers [E].
        seed: Seed of the split.
        scratch: Where arrays are made.

    Returns:
        Label of each interaction, int8 [E].
    """
    counts_U = _counts(users_E)
    held_out_U = np.where(counts_U >= 10, counts_U // 5, np.where(counts_U >= 3, 2, 0))
    shuffled_E = np.arange(len(users_E), dtype=np.min_scalar_type(len(users_E)))
    np.random.default_rng((seed, _ROW_STREAM)).shuffle(shuffled_E)
    places_E = inverse_of(shuffled_E, scratch)
    del shuffled_E
    return _label_last(users_E, (places_E,), counts_U, held_out_U // 2, held_out_U - held_out_U // 2, scratch)


def split_leave_one_out(
    users_E: np.ndarray, items_E: np.ndarray, times_E: np.ndarray, scratch: Scratch = IN_MEMORY
) -> np.ndarray:
    """Test on each user's last interaction and validate on the one before it.

    Args:
        users_E: User of each interaction, integers [E].
        items_E: Item of each interaction, integers [E]: of two at the same time, the one with the larger item is later, and of
            two with the same item the one that comes later in the array.
        times_E: Time of each interaction, [E].
        scratch: Where arrays are made.

    Returns:
        Label of each interaction, int8 [E]; users with less than 3 interactions only train.
    """
    counts_U = _counts(users_E)
    one_U = (counts_U >= 3).astype(np.int64)
    return _label_last(users_E, (items_E, times_E), counts_U, one_U, one_U, scratch)


def split_temporal(times_E: np.ndarray, scratch: Scratch = IN_MEMORY) -> np.ndarray:
    """Train on what came first, validate on what came next and test on the latest, 8:1:1, at the same times for all users.

    Interactions at the same time stay together: each part begins at the change of time that is nearest to its place, and has
    one time at least. Places are those of a random split of one user with all interactions. A sorted copy of the times is in
    scratch space.

    Args:
        times_E: Time of each interaction, float64, all finite.
        scratch: Where arrays are made.

    Returns:
        Label of each interaction, int8 [E].

    Raises:
        UserError: Less than three different times.
    """
    sorted_E = computed(lambda block: times_E[block], len(times_E), np.float64, scratch)
    sorted_E.sort()
    second, last = np.searchsorted(sorted_E, sorted_E[0], "right"), np.searchsorted(sorted_E, sorted_E[-1])
    if second >= last:
        found = 1 if last == 0 else 2
        raise UserError(
            f"split: got temporal for interactions at {found} time{'s' * (found > 1)}, expected 3 different ones or more, as "
            "each part begins at another; give finer times (--columns.time) or use another split"
        )
    held_out = len(sorted_E) // 5
    tests = second + _nearest_change(sorted_E[second:], len(sorted_E) - held_out + held_out // 2 - second)
    validates = _nearest_change(sorted_E[:tests], len(sorted_E) - held_out)
    starts = sorted_E[[validates, tests]]
    return computed(lambda block: np.searchsorted(starts, times_E[block], "right"), len(times_E), np.int8, scratch)


def sample_cold_items(num_items: int, seed: int) -> np.ndarray:
    """Sample the items all of whose interactions are held out: 5 % for validation, 15 % for test, at least one each.

    Args:
        num_items: Number of items to sample from, at least 3.
        seed: Seed of the split.

    Returns:
        Label of each item, int8 [I]: `TRAIN`, `COLD_VALIDATION` or `COLD_TEST`.
    """
    labels_I = np.full(num_items, TRAIN, dtype=np.int8)
    shuffled = np.random.default_rng((seed, _ITEM_STREAM)).permutation(num_items)
    for label, fraction in _COLD_FRACTIONS.items():
        count = max(1, round(fraction * num_items))
        labels_I[shuffled[:count]] = label
        shuffled = shuffled[count:]
    return labels_I


def split_cold_items(
    users_E: np.ndarray, items_E: np.ndarray, labels_I: np.ndarray, seed: int, scratch: Scratch = IN_MEMORY
) -> np.ndarray:
    """Give the interactions of cold items their item's label, and divide the others at random.

    Args:
        users_E: User of each interaction, integers [E].
        items_E: Item of each interaction, integers [E].
        labels_I: Label of each item, from `sample_cold_items`, int8 [I].
        seed: Seed of the split.
        scratch: Where arrays are made.

    Returns:
        Label of each interaction, int8 [E].
    """
    counts_I = counts_of(items_E, len(labels_I))
    warm_users = scratch.empty(int(counts_I[labels_I == TRAIN].sum()), users_E.dtype)
    for block, warm_R, places in _warm(items_E, labels_I):
        warm_users[places] = users_E[block][warm_R]
    warm_labels = split_random(warm_users, seed, scratch)
    labels_E = scratch.empty(len(items_E), np.int8)
    for block, warm_R, places in _warm(items_E, labels_I):
        labels_R = labels_I[items_E[block]]
        labels_R[warm_R] = warm_labels[places]
        labels_E[block] = labels_R
    return labels_E


def trained(numbers_E: np.ndarray, labels_E: np.ndarray, size: int) -> np.ndarray:
    """Find the users, or the items, who have interactions to train on.

    Args:
        numbers_E: User, or item, of each interaction, integers.
        labels_E: Label of each interaction.
        size: How many users or items there are.

    Returns:
        True for each such user or item, bool [size].
    """
    found = np.zeros(size, dtype=bool)
    for block in slices_of(len(numbers_E)):
        found[numbers_E[block][labels_E[block] == TRAIN]] = True
    return found


def without_training(users_E: np.ndarray, labels_E: np.ndarray, scratch: Scratch = IN_MEMORY) -> np.ndarray:
    """Find the interactions of users who have none to train on.

    Args:
        users_E: User of each interaction, integers [E].
        labels_E: Label of each interaction, int8 [E].
        scratch: Where arrays are made.

    Returns:
        True for each such interaction, bool [E].
    """
    trained_U = trained(users_E, labels_E, _size(users_E))
    return computed(lambda block: ~trained_U[users_E[block]], len(users_E), bool, scratch)


def _warm(items_E: np.ndarray, labels_I: np.ndarray) -> Iterator[tuple[slice, np.ndarray, slice]]:
    """For each block, which of its interactions are with items that are not cold, and their places among all such."""
    start = 0
    for block in slices_of(len(items_E)):
        warm_R = labels_I[items_E[block]] == TRAIN
        end = start + int(warm_R.sum())
        yield block, warm_R, slice(start, end)
        start = end


def _nearest_change(sorted_E: np.ndarray, place: int) -> int:
    """The position of the first of some equal times, but not of the lowest ones, that is nearest to a place."""
    time = sorted_E[min(max(place, 0), len(sorted_E) - 1)]
    changes = (int(np.searchsorted(sorted_E, time, side)) for side in ("left", "right"))
    return min((change for change in changes if 0 < change < len(sorted_E)), key=lambda change: abs(change - place))


def _label_last(
    users_E: np.ndarray,
    keys_E: tuple[np.ndarray, ...],
    counts_U: np.ndarray,
    num_validation_U: np.ndarray,
    num_test_U: np.ndarray,
    scratch: Scratch,
) -> np.ndarray:
    """Label the last interactions of each user in the order of `keys_E`, of which the last one counts first."""

    def labels(users_R: np.ndarray, *keys_R: np.ndarray) -> np.ndarray:
        order_R = np.lexsort((*keys_R, users_R))
        users_R = users_R[order_R]
        first, last = int(users_R[0]), int(users_R[-1]) + 1
        # Interactions that the user still has after this one; users_R keeps each user's together.
        later_R = np.cumsum(counts_U[first:last])[users_R - first] - 1 - np.arange(len(users_R))
        tests_R = later_R < num_test_U[users_R]
        validates_R = ~tests_R & (later_R < (num_test_U + num_validation_U)[users_R])
        labels_R = np.empty(len(users_R), dtype=np.int8)
        labels_R[order_R] = np.select([tests_R, validates_R], [TEST, VALIDATION], default=TRAIN)
        return labels_R

    return for_users(labels, users_E, keys_E, counts_U, np.int8, scratch)


def _counts(users_E: np.ndarray) -> np.ndarray:
    return counts_of(users_E, _size(users_E))


def _size(users_E: np.ndarray) -> int:
    return int(users_E.max(initial=0)) + 1
