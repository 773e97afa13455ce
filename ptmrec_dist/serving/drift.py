r"""Drift of what a model is asked against what it was trained on, by the population stability index.

.. math:: \mathrm{PSI} = \sum_b (p_b - q_b) \ln (p_b / q_b)

over buckets b, with p_b the fraction of the latest values and q_b that of training, both of counts plus a half, so that no
bucket is empty. Common readings: below 0.1 no drift, above 0.25 a large one.
"""

import io
import math
import tarfile
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError

BEST_SCORE, IMAGE_SIDE = "best_score", "image_shorter_side"
"""What is compared: the best score of a user's list by the full score, and the shorter side of images of new items."""
WINDOW = 2000
"""Latest values that are compared."""
FEWEST = 200
"""Values without which nothing is said: of fewer, chance alone gives a noticeable index."""
_SAMPLED_IMAGES = 500
_SIZE_EDGES = (0.25, 0.5, 0.999)  # fractions of the size to which larger images are reduced in packing


@dataclass(frozen=True)
class Baseline:
    """How values are distributed in training."""

    edges: list[float]
    """Inner bounds of the buckets, ascending; a bucket contains its upper bound."""
    counts: list[int]
    """Values in each bucket, one more than `edges`."""

    @classmethod
    def of(cls, values: Sequence[float], edges: Sequence[float]) -> "Baseline":
        """Count values.

        Args:
            values: Values in training.
            edges: Inner bounds of the buckets; equal ones count once.

        Returns:
            The baseline.
        """
        bounds = sorted(set(edges))
        buckets = np.searchsorted(bounds, values, side="left")
        return cls(bounds, np.bincount(buckets, minlength=len(bounds) + 1).tolist())


class DriftWindow:
    """The latest values, compared with those of training.

    Args:
        baseline: The values of training.
    """

    def __init__(self, baseline: Baseline) -> None:
        self._edges, self._expected = baseline.edges, _fractions(baseline.counts)
        self._latest: deque[int] = deque()
        self._counts = [0] * len(baseline.counts)
        self._lock = Lock()  # requests are answered in threads

    def add(self, values: Sequence[float]) -> float:
        """Take note of values.

        Args:
            values: The values, the latest last.

        Returns:
            Population stability index of the latest ones; 0 as long as there are fewer than `FEWEST`.
        """
        with self._lock:
            for value in values:
                bucket = bisect_left(self._edges, value)
                self._latest.append(bucket)
                self._counts[bucket] += 1
                if len(self._latest) > WINDOW:
                    self._counts[self._latest.popleft()] -= 1
            if len(self._latest) < FEWEST:
                return 0.0
            found = _fractions(self._counts)
        return sum((p - q) * math.log(p / q) for p, q in zip(found, self._expected, strict=True))


def image_sides(dataset: Dataset) -> Baseline | None:
    """Sample how long the shorter sides of packed images are; shards have items in random order.

    Args:
        dataset: Packed data set.

    Returns:
        Their distribution, in buckets by the size to which larger images were reduced; None without images.

    Raises:
        UserError: A shard that cannot be read.
    """
    size = dataset.manifest.image_size
    if size is None or "image" not in dataset.manifest.modalities:
        return None
    sides: list[float] = []
    for path in dataset.shard_paths():
        if len(sides) < _SAMPLED_IMAGES:
            sides += _sides_in(path)
    return Baseline.of(sides[:_SAMPLED_IMAGES], [fraction * size for fraction in _SIZE_EDGES])


def _sides_in(shard: Path) -> list[float]:
    sides: list[float] = []
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg") and (content := tar.extractfile(member)) is not None:
                    with Image.open(io.BytesIO(content.read())) as image:
                        sides.append(min(image.size))
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"shards: cannot read {shard} ({error}); restore the data set or pack again") from error
    return sides


def _fractions(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]
