"""Population stability index against a slow reference, its window, and what training looked like."""

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.serving.drift import FEWEST, WINDOW, Baseline, DriftWindow, image_sides
from tests.conftest import Project

RNG = np.random.default_rng(0)
TRAINING = RNG.normal(size=5000)
EDGES = np.quantile(TRAINING, np.linspace(0.1, 0.9, 9)).tolist()


def _slow_psi(values: np.ndarray) -> float:
    total = 0.0
    bounds = [-math.inf, *EDGES, math.inf]
    for low, high in itertools.pairwise(bounds):
        p, q = (
            (sum(low < value <= high for value in sample) + 0.5) / (len(sample) + 5) for sample in (values, TRAINING)
        )
        total += (p - q) * math.log(p / q)
    return total


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.05), (0.5, 0.1, 1.0), (3.0, 1.0, 20.0)])
def test_the_index_is_that_of_the_formula_and_grows_with_the_shift(shift: float, low: float, high: float) -> None:
    window, values = DriftWindow(Baseline.of(TRAINING.tolist(), EDGES)), RNG.normal(size=600) + shift
    found = window.add(values.tolist())
    assert found == pytest.approx(_slow_psi(values))
    assert low <= found < high


def test_the_latest_values_count_alone_and_few_say_nothing() -> None:
    window = DriftWindow(Baseline.of(TRAINING.tolist(), EDGES))
    assert window.add([9.0] * (FEWEST - 1)) == 0
    assert window.add([9.0]) > 1
    values = RNG.normal(size=WINDOW)
    assert window.add(values.tolist()) == pytest.approx(_slow_psi(values))


def test_equal_bounds_are_one_and_a_bucket_contains_its_upper_bound() -> None:
    assert Baseline.of([1, 1, 2, 3], [1, 1, 2]) == Baseline([1, 2], [2, 1, 1])
    window = DriftWindow(Baseline([1, 2], [200, 0, 0]))
    assert window.add([1.0] * FEWEST) == pytest.approx(0, abs=1e-12)


def test_sides_of_images_are_those_of_the_packed_ones(tiny_project: Project) -> None:
    baseline = image_sides(Dataset(tiny_project.shards))
    size = Dataset(tiny_project.shards).manifest.image_size
    assert baseline is not None
    assert size is not None
    assert baseline.edges == [0.25 * size, 0.5 * size, 0.999 * size]
    assert sum(baseline.counts) == 60
    with Image.open(io.BytesIO((tiny_project.source / "images" / "0.jpg").read_bytes())) as image:
        bucket = int(np.searchsorted(baseline.edges, min(image.size)))
    assert baseline.counts[bucket] == 60
