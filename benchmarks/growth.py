"""How stage 1 grows with the data: CPU seconds of an epoch and of an evaluation between epochs, and peak memory.

    python -m benchmarks.growth
    python -m benchmarks.growth --sizes 1000000,100000,10000000      # 6 GB, minutes
    python -m benchmarks.growth --recommender lattice --sizes 20000,20000,160000 100000,100000,800000
    python -m benchmarks.growth --device cuda                        # seconds of the GPU, and its memory

A size is users, items and interactions, generated with the popularity of a Zipf law; what reads features gets random ones of
width 512 for images and for texts. `build` is what a run computes once, such as a graph of similar items, and `rebuild` what it
computes once an epoch before the first step. Steps of the default batch size are measured, and the ranking of some users; an
epoch is `rebuild` and the number of its steps times the median, an evaluation what all users that it takes would need. `fixed`
is the epoch with batches of 2,048 by the same measure.
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

WIDTH = 512
SIZES = ("10000,1000,100000", "100000,10000,1000000", "300000,30000,3000000")
FIXED = 2048


def main() -> None:
    """Measure every size in a separate process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="USERS,ITEMS,INTERACTIONS")
    parser.add_argument("--recommender", default="lightgcn", help="recommender of users and items, by its name")
    parser.add_argument("--steps", type=int, default=4, help="steps that are measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(options, *map(int, options.one.split(",")))))
        return
    measured = ("build", "rebuild", "epoch", "fixed", "evaluation")
    columns = ["users", "items", "interactions", "batch", "steps", *(f"{name}, s" for name in measured), "GiB"]
    print("|", " | ".join(columns), "|")
    print("|", " | ".join(["---"] * len(columns)), "|")
    for size in options.sizes:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", "--steps", str(options.steps)]
        command += ["--recommender", options.recommender, "--device", options.device, "--one", size]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
        )
        sizes = [f"{int(number):,}" for number in size.split(",")]
        values = [found[name] for name in (*measured, "memory")]
        cells = [f"{found['batch']:,}", str(found["steps"]), *(f"{value:.1f}" for value in values)]
        print("|", " | ".join([*sizes, *cells]), "|", flush=True)


def _measure(options: argparse.Namespace, users: int, items: int, interactions: int) -> dict[str, Any]:
    import torch

    from benchmarks.clock import peak_bytes, seconds
    from ptmrec_dist.allocator import keep_freed_memory
    from ptmrec_dist.distributed import World
    from ptmrec_dist.recommenders import build_recommender, recommender_class
    from ptmrec_dist.training.stage1 import default_batch_size

    torch.set_num_threads(1)
    keep_freed_memory()
    train, world = _generate(users, items, interactions), World(0, 1, torch.device(options.device))
    modalities = ("image", "text") if recommender_class(options.recommender).multimodal else ()
    features = {modality: torch.randn(items, WIDTH, device=world.device) for modality in modalities}
    started = seconds(world.device)
    model = build_recommender(
        options.recommender, num_users=users, num_items=items, train=train, features=features, modalities=modalities
    ).to(world.device)
    built = seconds(world.device)
    model.rebuild(features)
    found: dict[str, Any] = {"build": built - started, "rebuild": seconds(world.device) - built}
    for name, batch_size in {"epoch": default_batch_size(len(train.users)), "fixed": FIXED}.items():
        step, steps = _step(model, features, train, users, batch_size, world, options.steps)
        found[name] = found["rebuild"] + step * steps
        if name == "epoch":
            found |= {"batch": batch_size, "steps": steps}
    found["evaluation"] = _evaluation(model, features, train, users, items, world.device)
    return found | {"memory": peak_bytes(world.device) / 2**30}


def _step(
    model: Any, features: Any, train: Any, users: int, batch_size: int, world: Any, measured: int
) -> tuple[float, int]:
    """Median seconds of some steps but the first, and the steps of an epoch."""
    import torch

    from benchmarks.clock import seconds
    from ptmrec_dist.training.batches import InteractionBatches

    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    generator, taken = torch.Generator(world.device).manual_seed(0), []
    batches = InteractionBatches(train, users, batch_size, world)
    model.train().start_epoch(generator)
    for (batch,), _ in zip(batches.epoch(0, 0, generator), range(measured), strict=False):
        started = seconds(world.device)
        terms = model.loss(batch.own, model.tables(features), features)
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.finish_step()
        taken.append(seconds(world.device) - started)
    return median(taken[1:]), batches.steps(0)


def _generate(users: int, items: int, interactions: int) -> Any:
    """Users at random, items by a Zipf law of exponent 0.8."""
    import numpy as np

    from ptmrec_dist.data.dataset import Interactions

    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 0.8
    chosen = np.searchsorted(weights.cumsum() / weights.sum(), rng.random(interactions)).clip(max=items - 1)
    return Interactions(rng.integers(0, users, interactions), chosen)


def _evaluation(
    model: Any, features: Any, train: Any, users: int, items: int, device: Any, measured: int = 2000
) -> float:
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
        scorer_of(model, features, None), wanted, seen, user_range=(0, 1)
    )  # what is made at first use is not timed
    started = seconds(device)
    scorer = scorer_of(model, features, None)
    propagated = seconds(device)
    rank_positives(scorer, wanted, seen, user_range=(0, measured))
    per_user = (seconds(device) - propagated) / measured
    return propagated - started + per_user * min(users, MOST_USERS)


if __name__ == "__main__":
    main()
