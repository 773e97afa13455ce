"""Bytes exchanged between ranks in a step of stage 2: by formula, and counted at torch.distributed in real steps.

python -m benchmarks.communication                       # count on 2 and 3 ranks, ZeRO 0 to 3
python -m benchmarks.communication --predict             # step times for 1 to 1,024 ranks from stated speeds

Payload is the size of an all-gather's output, a reduce-scatter's input or an all-reduce's tensor. On a ring each rank sends
(W - 1) / W of it, and twice that for an all-reduce.
"""

import argparse
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptmrec_dist.distributed import join_world
from ptmrec_dist.training.batches import StreamedBatches
from ptmrec_dist.training.tune import make_trainer
from tests.conftest import Project, make_project
from tests.ranks import run_on_ranks
from tests.tiny_clip import write_tiny_clip
from tests.training.gradient_world import ROWS, NoStream, Setting, config_of, item_windows
from tests.training.steps import temporary_session
from tests.training.tuner_world import Case, make_tuner


def objective_bytes(world: int, rows: int, widths: list[int], terms: int) -> dict[str, int]:
    """Payload of the objective in a step, by collective; every rank contributes `rows` items.

    Items (int64) and features (float32) are gathered, gradients of features reduced and scattered, the weights of the terms
    summed, and the losses reduced together with the stop flag.
    """
    if world == 1:
        return {"gather": 0, "scatter": 0, "reduce": 0}
    gathered = world * rows
    return {
        "gather": gathered * (8 + 4 * sum(widths)),
        "scatter": gathered * 4 * sum(widths),
        "reduce": 4 * terms + 4 * (terms + 1),
    }


def gradient_bytes(world: int, trained: int, frozen: int, zero: int) -> dict[str, int]:
    """Payload of gradients and parameters in a step, float32: `trained` and `frozen` are numbers of values.

    Gradients are summed over the ranks under ZeRO 0 to 2; ZeRO 1 and 2 then gather the parameters updated by each rank. ZeRO 3
    gathers every parameter, also of the backbone, once per step (twice beyond DeepSpeed's reuse distance of 1e9 values), and
    reduces and scatters gradients.
    """
    if world == 1:
        return {"gather": 0, "scatter": 0, "reduce": 0}
    if zero == 0:
        return {"gather": 0, "scatter": 0, "reduce": 4 * trained}
    if zero < 3:
        return {"gather": 4 * trained, "scatter": 0, "reduce": 4 * trained}
    passes = 1 if trained + frozen < 1e9 else 2
    return {"gather": passes * 4 * (trained + frozen), "scatter": 4 * trained, "reduce": 0}


class Counted(TorchDispatchMode):
    """Counts the payload of every collective that is dispatched while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name
            kind = "gather" if "gather" in name else "scatter" if "scatter" in name else "reduce"
            sizes = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, torch.Tensor)) for a in args[:2]]
            self.bytes[kind] += max(sizes)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Print counts or predictions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--compute", type=float, default=0.1, help="seconds of a step on one rank, measured")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--prompts", type=float, default=4 * 12 * (768 + 512))
    parser.add_argument("--backbone", type=float, default=151e6, help="values of the frozen backbone (ViT-B-32)")
    parser.add_argument("--within", type=float, default=300e9, help="bytes a second between ranks of a machine")
    parser.add_argument("--between", type=float, default=50e9, help="bytes a second and rank between machines")
    parser.add_argument("--per_machine", type=int, default=8)
    parser.add_argument(
        "--latency", type=float, default=20e-6, help="seconds of a collective, and per doubling of ranks"
    )
    options = parser.parse_args()
    _predict(options) if options.predict else _count()


def _count() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project"
        path.mkdir()
        project = make_project(path, write_tiny_clip(Path(folder) / "clip"))
        print(f"\n{'ranks':>5} {'ZeRO':>4} {'':<8} {'counted':>10} {'formula':>10}  bytes a step")
        for world in (2, 3):
            for zero in range(4):
                counted, numbers = run_on_ranks(world, _counted_step, project, zero)[0]
                first = objective_bytes(world, ROWS, numbers["widths"], numbers["terms"])
                second = gradient_bytes(world, numbers["trained"], numbers["frozen"], zero)
                for kind in ("gather", "scatter", "reduce"):
                    formula = first[kind] + second[kind]
                    print(f"{world:>5} {zero:>4} {kind:<8} {counted.get(kind, 0):>10,} {formula:>10,}")


def _counted_step(project: Project, zero: int) -> tuple[dict[str, int], dict[str, Any]]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    world = join_world("cpu")
    tuner, dataset = make_tuner(project.shards, project.features, project.clip, Case(), ROWS)
    parameters = list(tuner.parameters())
    numbers = {
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen": sum(p.numel() for p in parameters if not p.requires_grad),
        "widths": list(tuner.encoder.widths.values()) if tuner.encoder is not None else [],
    }
    config = config_of(Setting(Case(), zero), world)
    window = item_windows(tuner, dataset, world.size, world.rank)["even"]
    with temporary_session(config, world) as session:
        trainer = make_trainer(config, session, tuner, StreamedBatches(NoStream()))
        trainer.train_step(window)
        with Counted() as counted:
            trainer.train_step(window)
    return dict(counted.bytes), numbers | {"terms": len(trainer.state.losses)}


def _predict(options: argparse.Namespace) -> None:
    trained = int(options.prompts + (options.users + options.items) * options.dim)
    headings = f"{'ranks':>5} {'batch':>8} {'objective MB':>13} {'gradients MB':>13} {'comm ms':>8} {'step ms':>8}"
    print(f"{headings} {'efficiency':>10}")
    for power in range(11):
        world = 2**power
        first = objective_bytes(world, options.rows, options.widths, 3)
        second = gradient_bytes(world, trained, int(options.backbone), 1)
        sent = [_ring(payload, world) for payload in (first, second)]
        speed = options.within if world <= options.per_machine else options.between
        calls = 16 * options.latency * power
        communication = sum(sent) / speed + calls
        step = options.compute + communication
        print(
            f"{world:>5} {world * options.rows:>8} {sent[0] / 1e6:>13.2f} {sent[1] / 1e6:>13.2f} {communication * 1e3:>8.2f} "
            f"{step * 1e3:>8.2f} {options.compute / step:>10.1%}"
        )


def _ring(payload: dict[str, int], world: int) -> float:
    """Bytes that each rank sends."""
    return (payload["gather"] + payload["scatter"] + 2 * payload["reduce"]) * (world - 1) / world


if __name__ == "__main__":
    main()
