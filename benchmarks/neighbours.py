"""Exact nearest neighbours of a large catalogue: seconds and memory, compared with the matrix products alone.

python -m benchmarks.neighbours --items 100000 --width 512 --threads 2
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch

from ptmrec_dist.recommenders.neighbours import nearest_neighbours

_BLOCK = 335  # rows of a product


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    features = torch.randn(options.items, options.width, generator=torch.Generator().manual_seed(0))
    products, cpu = _timed(lambda: _some_products(features))
    blocks = options.items / _BLOCK / 20
    before = _peak_gb()
    seconds, own_cpu = _timed(lambda: nearest_neighbours(features, options.k))
    print(
        f"{options.items:,} x {options.width}, {options.threads} threads: {seconds:.1f} s ({own_cpu:.0f} s of CPU), "
        f"products alone {products * blocks:.1f} s ({cpu * blocks:.0f} s of CPU, extrapolated from 20 blocks), "
        f"{_peak_gb() - before:.2f} GB beyond the features"
    )


def _some_products(features: torch.Tensor) -> None:
    similarities = torch.empty(_BLOCK, len(features))
    for start in range(0, 20 * _BLOCK, _BLOCK):
        torch.mm(features[start : start + _BLOCK], features.T, out=similarities)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
