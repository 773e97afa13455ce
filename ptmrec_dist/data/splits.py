"""Splits: which interactions are for training, validation and test. Pure functions of numbers, no files.

Shape suffixes: E interactions, U users, I items.
"""

import numpy as np

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
        users_E: User of each interaction, int64.
        seed: Seed of the split.

    Returns:
        Label of each interaction, int8 [E].
    """
    counts_U = np.bincount(users_E)
    held_out_U = np.where(counts_U >= 10, counts_U // 5, np.where(counts_U >= 3, 2, 0))
    shuffled_E = np.random.default_rng((seed, _ROW_STREAM)).permutation(len(users_E))
    order_E = shuffled_E[np.argsort(users_E[shuffled_E], kind="stable")]
    return _label_last(users_E, order_E, held_out_U // 2, held_out_U - held_out_U // 2)


def split_leave_one_out(users_E: np.ndarray, times_E: np.ndarray) -> np.ndarray:
    """Test on each user's last interaction and validate on the one before it.

    Args:
        users_E: User of each interaction, int64.
        times_E: Time of each interaction; of two at the same time, the one that comes later in the array is later.

    Returns:
        Label of each interaction, int8 [E]; users with less than 3 interactions only train.
    """
    one_U = (np.bincount(users_E) >= 3).astype(np.int64)
    return _label_last(users_E, np.lexsort((times_E, users_E)), one_U, one_U)


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
        users_E: User of each interaction, int64.
        items_E: Item of each interaction, int64.
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
        users_E: User of each interaction, int64.
        labels_E: Label of each interaction.

    Returns:
        True for each such interaction, bool [E].
    """
    trained_U = np.bincount(users_E[labels_E == TRAIN], minlength=users_E.max(initial=-1) + 1) > 0
    untrained_E: np.ndarray = ~trained_U[users_E]
    return untrained_E


def _label_last(
    users_E: np.ndarray, order_E: np.ndarray, num_validation_U: np.ndarray, num_test_U: np.ndarray
) -> np.ndarray:
    sorted_E = users_E[order_E]
    # Interactions that the user still has after this one; order_E keeps each user's together.
    later_E = np.cumsum(np.bincount(users_E))[sorted_E] - 1 - np.arange(len(users_E))
    tests_E = later_E < num_test_U[sorted_E]
    validates_E = ~tests_E & (later_E < (num_test_U + num_validation_U)[sorted_E])
    labels_E = np.empty(len(users_E), dtype=np.int8)
    labels_E[order_E] = np.select([tests_E, validates_E], [TEST, VALIDATION], default=TRAIN)
    return labels_E
