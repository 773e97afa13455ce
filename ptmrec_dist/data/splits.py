"""Splits: which interactions are for training, validation and test. Pure functions of numbers, no files.

Shape suffixes: E interactions, R those of a block, U users, I items.
"""

import numpy as np

from ptmrec_dist.data.blocks import blocks_of_users, counts_of

PARTS = ("train", "validation", "test", "cold_validation", "cold_test")
"""Names of the parts; a label is an index into them."""
TRAIN, VALIDATION, TEST, COLD_VALIDATION, COLD_TEST = range(5)
_ROW_STREAM, _ITEM_STREAM = 0, 1
"""Each use of the seed has a random stream of its own, so that no two uses sample in the same order."""
_COLD_FRACTIONS = {COLD_VALIDATION: 0.05, COLD_TEST: 0.15}


def split_random(users_E: np.ndarray, seed: int) -> np.ndarray:
    """Divide each user's interactions 8:1:1 at random, as is common in the literature.

    Of n interactions of a user n // 5 are held out, half of them (rounded down) for validation and the others for test;
    of less than 10 one for each; of less than 3 none.

    Args:
        users_E: User of each interaction, integers.
        seed: Seed of the split.

    Returns:
        Label of each interaction, int8 [E].
    """
    counts_U = _counts(users_E)
    held_out_U = np.where(counts_U >= 10, counts_U // 5, np.where(counts_U >= 3, 2, 0))
    positions_E = np.arange(len(users_E), dtype=np.min_scalar_type(len(users_E)))
    shuffled_E = positions_E.copy()
    np.random.default_rng((seed, _ROW_STREAM)).shuffle(shuffled_E)
    places_E = np.empty_like(shuffled_E)
    places_E[shuffled_E] = positions_E
    del positions_E, shuffled_E
    return _label_last(users_E, (places_E,), counts_U, held_out_U // 2, held_out_U - held_out_U // 2)


def split_leave_one_out(users_E: np.ndarray, items_E: np.ndarray, times_E: np.ndarray) -> np.ndarray:
    """Test on each user's last interaction and validate on the one before it.

    Args:
        users_E: User of each interaction, integers.
        items_E: Item of each interaction: of two at the same time, the one with the larger item is later, and of two with
            the same item the one that comes later in the array.
        times_E: Time of each interaction.

    Returns:
        Label of each interaction, int8 [E]; users with less than 3 interactions only train.
    """
    counts_U = _counts(users_E)
    one_U = (counts_U >= 3).astype(np.int64)
    return _label_last(users_E, (items_E, times_E), counts_U, one_U, one_U)


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


def split_cold_items(users_E: np.ndarray, items_E: np.ndarray, labels_I: np.ndarray, seed: int) -> np.ndarray:
    """Give the interactions of cold items their item's label, and divide the others at random.

    Args:
        users_E: User of each interaction, integers.
        items_E: Item of each interaction, integers.
        labels_I: Label of each item, from `sample_cold_items`.
        seed: Seed of the split.

    Returns:
        Label of each interaction, int8 [E].
    """
    labels_E: np.ndarray = labels_I[items_E]
    warm_E = labels_E == TRAIN
    labels_E[warm_E] = split_random(users_E[warm_E], seed)
    return labels_E


def without_training(users_E: np.ndarray, labels_E: np.ndarray) -> np.ndarray:
    """Find the interactions of users who have none to train on.

    Args:
        users_E: User of each interaction, integers.
        labels_E: Label of each interaction.

    Returns:
        True for each such interaction, bool [E].
    """
    trained_U = counts_of(users_E[labels_E == TRAIN], _size(users_E)) > 0
    untrained_E: np.ndarray = ~trained_U[users_E]
    return untrained_E


def _label_last(
    users_E: np.ndarray,
    keys_E: tuple[np.ndarray, ...],
    counts_U: np.ndarray,
    num_validation_U: np.ndarray,
    num_test_U: np.ndarray,
) -> np.ndarray:
    """Label the last interactions of each user in the order of `keys_E`, of which the last one counts first."""
    labels_E = np.empty(len(users_E), dtype=np.int8)
    for rows_R in blocks_of_users(users_E, counts_U):
        order_R = np.lexsort((*(key_E[rows_R] for key_E in keys_E), users_E[rows_R]))
        users_R = users_E[rows_R[order_R]]
        first, last = int(users_R[0]), int(users_R[-1]) + 1
        # Interactions that the user still has after this one; users_R keeps each user's together.
        later_R = np.cumsum(counts_U[first:last])[users_R - first] - 1 - np.arange(len(users_R))
        tests_R = later_R < num_test_U[users_R]
        validates_R = ~tests_R & (later_R < (num_test_U + num_validation_U)[users_R])
        labels_E[rows_R[order_R]] = np.select([tests_R, validates_R], [TEST, VALIDATION], default=TRAIN)
    return labels_E


def _counts(users_E: np.ndarray) -> np.ndarray:
    return counts_of(users_E, _size(users_E))


def _size(users_E: np.ndarray) -> int:
    return int(users_E.max(initial=0)) + 1
