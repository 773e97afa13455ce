"""Milliseconds of a step of stage 2 on a large catalogue, encoder left out: rows of the batch, or copies of the feature tables.

    python -m benchmarks.batch_rows [--items 80000] [--steps 20]

`before` declares that VBPR propagates features, as if every recommender did: the same step then copies whole tables and its
live teacher projects all items. Both forms alternate in one process.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.pairs import TrainBatch
from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.general.vbpr import VBPR
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.objectives.transfer import Transfer, TransferSettings

USERS, WIDTH, BATCH, ROWS_PER_ITEM = 20_000, 512, 128, 5


def main() -> None:
    """Print a line for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=80_000)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    for live_teacher in (False, True):
        tuner = _tuner(options.items, live_teacher)
        batches = [_batch(options.items, seed) for seed in range(options.steps + 1)]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for step, batch in enumerate(batches):
            for before in (True, False):
                VBPR.propagates_features = before
                seconds[before].append(_seconds(tuner, batch, step))
        before, after = (1000 * statistics.median(seconds[form][1:]) for form in (True, False))
        name = "live" if live_teacher else "stage 1"
        print(f"teacher {name}: {before:.1f} ms a step before, {after:.1f} ms after, ratio {before / after:.1f}")


def _seconds(tuner: Transfer, batch: TrainBatch, step: int) -> float:
    tuner.zero_grad()
    start = time.perf_counter()
    torch.stack(list(tuner(batch, step).values())).sum().backward()
    return time.perf_counter() - start


def _tuner(items: int, live_teacher: bool) -> Transfer:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    train = Interactions(rng.integers(0, USERS, items * ROWS_PER_ITEM), np.repeat(np.arange(items), ROWS_PER_ITEM))
    features = {modality: torch.randn(items, WIDTH) for modality in ("image", "text")}
    recommender = build_recommender(
        "vbpr", num_users=USERS, num_items=items, train=train, features=features, modalities=tuple(features)
    )
    transfer = TransferSettings(1.0, 1.0, live_teacher, id_only=False, mask_known=False)
    return Transfer(None, recommender, features, KnownPositives(train, items), transfer, seed=0, rows=BATCH)


def _batch(items: int, seed: int) -> TrainBatch:
    rng = np.random.default_rng(seed)
    content = ItemBatch(torch.from_numpy(rng.choice(items, BATCH, replace=False)), None, None)
    rows = BATCH * ROWS_PER_ITEM
    return TrainBatch.of(content, rng.integers(0, USERS, rows), np.arange(rows) % BATCH, np.arange(rows))


if __name__ == "__main__":
    main()
