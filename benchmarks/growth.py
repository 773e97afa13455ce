"""How LightGCN's stage 1 grows with the data: CPU seconds of an epoch and of an evaluation between epochs, and peak memory.

    python -m benchmarks.growth
    python -m benchmarks.growth --sizes 1000000,100000,10000000      # 6 GB, minutes
    python -m benchmarks.growth --device cuda                        # seconds of the GPU, and its memory

A size is users, items and interactions, generated with the popularity of a Zipf law. Steps of the default batch size are
measured, and the ranking of some users; an epoch is the number of its steps times the median, an evaluation what all users that
it takes would need. `fixed` is the epoch with batches of 2,048 by the same measure.
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

SIZES = ("10000,1000,100000", "100000,10000,1000000", "300000,30000,3000000")
FIXED = 2048


def main() -> None:
    """Measure every size in a separate process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="USERS,ITEMS,INTERACTIONS")
    parser.add_argument("--steps", type=int, default=4, help="steps that are measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*map(int, options.one.split(",")), options.steps, options.device)))
        return
    print("| users | items | interactions | batch | steps | epoch, s | fixed, s | evaluation, s | GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in options.sizes:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", "--steps", str(options.steps)]
        command += ["--device", options.device, "--one", size]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
        )
        sizes = [f"{int(number):,}" for number in size.split(",")]
        values = [found[name] for name in ("epoch", "fixed", "evaluation", "memory")]
        cells = [f"{found['batch']:,}", str(found["steps"]), *(f"{value:.1f}" for value in values)]
        print("|", " | ".join([*sizes, *cells]), "|", flush=True)


def _measure(users: int, items: int, interactions: int, steps: int, device: str) -> dict[str, Any]:
    import torch

    from benchmarks.clock import peak_bytes, seconds
    from ptmrec_dist.allocator import keep_freed_memory
    from ptmrec_dist.config import recommender_config
    from ptmrec_dist.distributed import World
    from ptmrec_dist.recommenders import build_recommender
    from ptmrec_dist.training.batches import InteractionBatches
    from ptmrec_dist.training.stage1 import default_batch_size

    torch.set_num_threads(1)
    keep_freed_memory()
    train, world = _generate(users, items, interactions), World(0, 1, torch.device(device))
    config = recommender_config("lightgcn")
    model = build_recommender(
        "lightgcn", num_users=users, num_items=items, train=train, features={}, modalities=(), config=config
    ).to(world.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    generator, found = torch.Generator(world.device).manual_seed(0), {}
    for name, batch_size in {"epoch": default_batch_size(len(train.users)), "fixed": FIXED}.items():
        batches = InteractionBatches(train, users, batch_size, world)
        taken = []
        for (batch,), _ in zip(batches.epoch(0, 0, generator), range(steps), strict=False):
            started = seconds(world.device)
            terms = model.loss(batch.own, model.tables({}), {})
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(seconds(world.device) - started)
        found |= {name: median(taken[1:]) * batches.steps(0)}
        if name == "epoch":
            found |= {"batch": batch_size, "steps": batches.steps(0)}
    found["evaluation"] = _evaluation(model, train, users, items, world.device)
    return found | {"memory": peak_bytes(world.device) / 2**30}


def _generate(users: int, items: int, interactions: int) -> Any:
    """Users at random, items by a Zipf law of exponent 0.8."""
    import numpy as np

    from ptmrec_dist.data.dataset import Interactions

    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 0.8
    chosen = np.searchsorted(weights.cumsum() / weights.sum(), rng.random(interactions)).clip(max=items - 1)
    return Interactions(rng.integers(0, users, interactions), chosen)


def _evaluation(model: Any, train: Any, users: int, items: int, device: Any, measured: int = 2000) -> float:
    """Seconds for the users that are evaluated between epochs, one positive each, by those of some."""
    import numpy as np

    from benchmarks.clock import seconds
    from ptmrec_dist.data.dataset import Interactions
    from ptmrec_dist.data.histories import Histories
    from ptmrec_dist.evaluation.ranking import rank_positives
    from ptmrec_dist.evaluation.scoring import scorer_of
    from ptmrec_dist.training.ranking_evaluation import MOST_USERS

    seen = Histories(train, users, items)
    wanted = Histories(Interactions(np.arange(users), np.random.default_rng(1).integers(0, items, users)), users, items)
    model.eval()
    rank_positives(
        scorer_of(model, {}, None), wanted, seen, user_range=(0, 1)
    )  # what is made at first use is not timed
    started = seconds(device)
    scorer = scorer_of(model, {}, None)
    propagated = seconds(device)
    rank_positives(scorer, wanted, seen, user_range=(0, measured))
    per_user = (seconds(device) - propagated) / measured
    return propagated - started + per_user * min(users, MOST_USERS)


if __name__ == "__main__":
    main()
