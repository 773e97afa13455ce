"""Geometry of features on the unit sphere: alignment, uniformity, and a two-dimensional embedding.

Shape suffixes: E interactions, U users, I items, N sampled items, D width, G points of a curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ptmrec_dist.data.dataset import Interactions

SAMPLE, MAPPED = 2000, 1000
"""Maximum number of items for the uniformity and for an embedding; of more, a sample with a fixed seed is used."""
_SEED = 0
_TEMPERATURE = 2.0  # t of Wang and Isola's uniformity
_ANGLES = 180
_BLOCK_SUMS = 2**20


@dataclass(frozen=True)
class Cloud:
    """Two-dimensional embedding of a modality's features, with Gaussian kernel densities."""

    points: np.ndarray
    """t-SNE coordinates, centred, float64 [N, 2]."""
    densities: np.ndarray
    """Density at each point relative to the largest, float64 [N]."""
    angles: np.ndarray
    """Directions from the centre in radians, float64 [G]."""
    angle_densities: np.ndarray
    """Density of the points' directions at these angles, float64 [G]."""


def pair_alignment(images_ID: np.ndarray, texts_ID: np.ndarray) -> float:
    """Compute the alignment of image and text: mean squared distance of an item's unit vectors, 0 to 4, lower is closer.

    Args:
        images_ID: Image features, float32 [I, D]; rows of zeros (unreadable images) are ignored.
        texts_ID: Text features of the same items in the same space, float32 [I, D].

    Returns:
        The alignment; NaN if the widths differ, since the modalities are then not in one space.

    Source: Wang and Isola 2020, arXiv 2005.10242, with alpha = 2; positive pairs are the image and the text of one item.
    """
    if images_ID.shape[1] != texts_ID.shape[1]:
        return float("nan")
    both_I = images_ID.any(axis=1) & texts_ID.any(axis=1)
    cosines_N = (_unit(images_ID[both_I]) * _unit(texts_ID[both_I])).sum(axis=1)
    return float(np.mean(2 - 2 * cosines_N)) if len(cosines_N) else float("nan")


def taste_alignment(features_ID: np.ndarray, train: Interactions) -> float:
    """Compute the alignment of a user's items: mean squared distance between their unit vectors, 0 to 4, lower is closer.

    Args:
        features_ID: Features of a modality, float32 [I, D]; rows of zeros are ignored.
        train: Training interactions.

    Returns:
        Mean over the users with two items or more of the mean over the pairs of their items; NaN if there is no such user.

    Source: Wang and Isola 2020 with alpha = 2; positive pairs are two items that one user took.
    """
    from scipy.sparse import csr_array

    squares_I = np.einsum("id,id->i", features_ID, features_ID, dtype=np.float64)
    unit_ID = features_ID / np.sqrt(squares_I + (squares_I == 0))[:, None]
    kept = squares_I[train.items] > 0
    users_E, items_E = train.users[kept], train.items[kept]
    counts_U = np.bincount(users_E)
    taken = csr_array((np.ones(len(users_E)), (users_E, items_E)), shape=(len(counts_U), len(unit_ID)))
    lengths_U = np.zeros(len(counts_U))
    block = max(1, _BLOCK_SUMS // unit_ID.shape[1])
    # In blocks: the sums of all users at once would take as much memory as another table of features.
    for start in range(0, len(counts_U), block):
        rows = slice(start, start + block)
        lengths_U[rows] = ((taken[rows] @ unit_ID) ** 2).sum(axis=1)
    several = counts_U >= 2
    counts_N = counts_U[several]
    # Over ordered pairs of different items: |sum|^2 contains every pair, and each item paired with itself.
    cosines_N = (lengths_U[several] - counts_N) / (counts_N * (counts_N - 1))
    return float(np.mean(2 - 2 * cosines_N)) if len(cosines_N) else float("nan")


def uniformity(features_ID: np.ndarray) -> float:
    """Compute the uniformity of features on the sphere: log of the mean of exp(-2 d^2) over pairs of items, at most 0.

    Args:
        features_ID: Features of a modality, float32 [I, D]; rows of zeros are ignored.

    Returns:
        The uniformity; lower is more uniform. NaN if there are fewer than two items.

    Source: Wang and Isola 2020, with t = 2, over all pairs of at most `SAMPLE` items.
    """
    unit_ND = _unit(features_ID[sample(features_ID)])
    if len(unit_ND) < 2:
        return float("nan")
    above = np.triu_indices(len(unit_ND), k=1)
    squared = 2 - 2 * (unit_ND @ unit_ND.T)[above]
    return float(np.log(np.mean(np.exp(-_TEMPERATURE * squared))))


def sample(features_ID: np.ndarray, most: int = SAMPLE) -> np.ndarray:
    """Sample items with a fixed seed, or take all that have features if they are few.

    Args:
        features_ID: Features of a modality, float32 [I, D].
        most: Maximum number of items.

    Returns:
        Item indices, ascending, int64 [N].
    """
    known = np.flatnonzero(features_ID.any(axis=1))
    if len(known) <= most:
        return known
    return np.sort(np.random.default_rng(_SEED).choice(known, most, replace=False))


def cloud(features_ND: np.ndarray) -> Cloud | None:
    """Embed features in the plane by t-SNE, and estimate their density by position and by direction.

    The direction is the angle around the centre. Its density is estimated on the circle, without a boundary at +-pi.

    Args:
        features_ND: Features of the sampled items, float32 [N, D].

    Returns:
        The embedding; None if there are too few distinct items.

    Source: van der Maaten and Hinton 2008; initialized with the first principal components, with a fixed seed.
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE

    if len(np.unique(features_ND, axis=0)) < 5:
        return None
    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=_SEED).fit_transform(_unit(features_ND)).astype(float)
    points -= points.mean(axis=0)
    densities = gaussian_kde(points.T)(points.T)
    around = np.arctan2(points[:, 1], points[:, 0])
    # Repeated one turn before and after, so that the density is periodic.
    turns = np.concatenate([around - 2 * np.pi, around, around + 2 * np.pi])
    angles = np.linspace(-np.pi, np.pi, _ANGLES)
    return Cloud(points, densities / densities.max(), angles, 3 * gaussian_kde(turns, _bandwidth(len(around)))(angles))


def qualities(features: Mapping[str, np.ndarray], train: Interactions) -> dict[str, float]:
    """Compute alignment and uniformity of a run's features.

    Args:
        features: Modality to float32 [I, d_m].
        train: Training interactions.

    Returns:
        Name of each defined measure to its value.
    """
    found = {}
    if {"image", "text"} <= features.keys():
        found["alignment of image and text"] = pair_alignment(features["image"], features["text"])
    for modality, table in features.items():
        found[f"alignment with taste, {modality}"] = taste_alignment(table, train)
    for modality, table in features.items():
        found[f"uniformity, {modality}"] = uniformity(table)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _bandwidth(count: int) -> float:
    """Scott's factor for `count` points, corrected for the spread that the repeated turns add."""
    return float(count ** (-1 / 5) / 3)


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    rows_ND = np.asarray(rows_ND, dtype=np.float64)
    return np.asarray(rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True))
