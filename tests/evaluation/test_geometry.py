"""Alignment and uniformity against their definitions written out; maps that come out the same every time."""

import math

import numpy as np
import pytest

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation import geometry
from ptmrec_dist.evaluation.geometry import cloud, pair_alignment, qualities, sample, taste_alignment, uniformity
from tests.memory import peak_of_arrays


def _features(rows: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    one, other = (row.astype(float) / math.sqrt(sum(float(value) ** 2 for value in row)) for row in (one, other))
    return float(sum((one - other) ** 2))


def test_alignment_of_image_and_text_is_the_mean_squared_distance_of_an_items_two_vectors() -> None:
    images, texts = _features(9), _features(9, seed=1)
    images[4] = 0  # could not be read
    expected = [_distance(images[item], texts[item]) for item in range(9) if item != 4]
    assert pair_alignment(images, texts) == pytest.approx(np.mean(expected), rel=1e-6)
    assert pair_alignment(texts, 3 * texts) == pytest.approx(0, abs=1e-6)
    assert math.isnan(pair_alignment(images, _features(9, width=6)))


def test_alignment_with_taste_is_the_mean_over_users_of_the_mean_over_pairs_of_their_items() -> None:
    features = _features(8)
    features[7] = 0
    taken = {0: [0, 1, 2], 2: [3], 3: [4, 5, 7], 5: [6, 0, 1, 4]}
    train = Interactions(
        np.array([user for user, items in taken.items() for _ in items]), np.concatenate([*taken.values()])
    )
    means = []
    for items in taken.values():
        known = [item for item in items if item != 7]
        pairs = [_distance(features[a], features[b]) for a in known for b in known if a < b]
        if pairs:
            means.append(np.mean(pairs))
    assert taste_alignment(features, train) == pytest.approx(np.mean(means), rel=1e-6)


def test_alignment_with_taste_is_the_same_however_many_users_are_summed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    train = Interactions(rng.integers(0, 30, 200), rng.integers(0, 8, 200))
    expected = taste_alignment(_features(8), train)
    monkeypatch.setattr(geometry, "_BLOCK_SUMS", 1)
    assert taste_alignment(_features(8), train) == pytest.approx(expected, rel=1e-12)


def test_alignment_with_taste_holds_no_features_for_each_interaction_nor_for_each_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(geometry, "_BLOCK_SUMS", 2**12)
    rng, features = np.random.default_rng(0), _features(60, width=256)
    taste_alignment(
        features, Interactions(np.zeros(2, np.int64), np.arange(2))
    )  # what is imported first is not counted
    for users, count in ((20_000, 20_000), (50, 40_000)):
        train = Interactions(rng.integers(0, users, count), rng.integers(0, 60, count))
        peak = peak_of_arrays(lambda: taste_alignment(features, train))  # noqa: B023
        assert peak < 200 * count < features[0].nbytes * count / 5


def test_uniformity_is_the_log_of_the_mean_potential_of_all_pairs() -> None:
    features = _features(12)
    potentials = [math.exp(-2 * _distance(features[a], features[b])) for a in range(12) for b in range(a)]
    assert uniformity(features) == pytest.approx(math.log(np.mean(potentials)), rel=1e-6)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-9)
    assert uniformity(features) < uniformity(features + 5)


def test_a_sample_is_the_same_every_time_and_leaves_out_what_could_not_be_read() -> None:
    features = _features(50)
    features[10:20] = 0
    assert sample(features).tolist() == [*range(10), *range(20, 50)]
    few = sample(features, most=7)
    assert few.tolist() == sample(features, most=7).tolist() == sorted(set(few))
    assert len(few) == 7
    assert not set(few) & set(range(10, 20))


def test_a_map_is_the_same_every_time_and_its_densities_are_densities() -> None:
    clumps = np.concatenate([_features(40) * 0.05 + centre for centre in np.eye(5)[:3]])
    first, second = cloud(clumps), cloud(clumps)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.points, second.points)
    assert first.densities.max() == 1
    around = np.trapezoid(first.angle_densities, first.angles)
    assert around == pytest.approx(1, abs=0.02)
    # A circle has no ends.
    assert first.angle_densities[0] == pytest.approx(first.angle_densities[-1], rel=1e-6)


def test_what_cannot_be_mapped_or_measured_is_left_out() -> None:
    assert cloud(np.ones((30, 4))) is None
    assert cloud(_features(4)) is None
    found = qualities({"text": _features(1)}, Interactions(np.array([0]), np.array([0])))
    assert found == {}
