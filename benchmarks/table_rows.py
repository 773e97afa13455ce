"""BPR (and VBPR) whose embedding tables are whole on every rank, cut by ZeRO 1 to 3, or cut by rows: bytes, seconds, memory.

    python -m benchmarks.table_rows                          # steps on 2 and 4 ranks over gloo
    python -m benchmarks.table_rows --run --users 200000 --items 200000      # whole runs of `ptmrec stage1`
    python -m benchmarks.table_rows --run --users 200000 --items 200000 --width 32 --features 128      # of VBPR

Steps: each form starts from the same tables, takes the same batches, and must end with the tables of one process. Payload is
the size of an all-gather's output, a reduce-scatter's input, an all-reduce's tensor or an all-to-all's input, on one rank;
memory is what a rank holds after a step, beyond what it held before the model was built.

Runs: one epoch of ten steps on generated data of two interactions a user, with an evaluation of 1,000 users, a checkpoint
every four steps and the files of the finished run, under ZeRO 1 where tables are whole; memory is the peak of anonymous memory
beyond what a rank held before.
"""

import argparse
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.communication import Counted
from ptmrec_dist import cli
from ptmrec_dist.config import PackConfig, Stage1Config, TrackingConfig, recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.engines import make_engine
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Batch
from ptmrec_dist.training.objectives.ranking import Ranking, RankingBatch
from ptmrec_dist.training.stage1 import train_stage1
from tests.ranks import run_on_ranks

_STEPS = 3
_EVERY = 0.005
"""Seconds between looks at a process."""

Sizes = tuple[int, int, int]
"""Users, items, width."""


def main() -> None:
    """Measure every form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048, help="pairs of a rank in a step")
    parser.add_argument("--run", action="store_true", help="measure whole runs instead of steps")
    parser.add_argument("--features", type=int, help="with --run: train VBPR on images' features of this width")
    options = parser.parse_args()
    sizes = options.users, options.items, options.width
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            _print_runs(Path(folder), sizes, options.ranks, options.features)
    else:
        _print_steps(sizes, options.ranks, options.batch)


def _print_steps(sizes: Sizes, ranks: list[int], batch: int) -> None:
    print("| ranks | tables | payload a step, MB | seconds a step | MB a rank | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in ranks:
        expected = run_on_ranks(1, _measure, "whole", sizes, number * batch)[0][-1]
        for form in ("whole", "zero 1", "zero 2", "zero 3", "rows"):
            found = run_on_ranks(number, _measure, form, sizes, batch)
            payload, seconds, memory = (max(values) for values in list(zip(*found, strict=True))[:3])
            difference = np.abs(found[0][-1] - expected).max()
            cells = f"{payload / 1e6:.2f} | {seconds:.2f} | {memory / 1e6:.0f} | {difference:.1e}"
            print(f"| {number} | {form} | {cells} |", flush=True)


def _measure(form: str, sizes: Sizes, rows: int) -> tuple[float, float, float, Tensor]:
    """Payload, seconds and memory of the last step of this rank, and on the first the first 1,000 rows of both tables."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    world, empty = join_world("cpu"), _anonymous()
    stage = int(form.removeprefix("zero ")) if form.startswith("zero") else 0
    objective = _objective(sizes, world, world if form == "rows" else None)
    optimizer = torch.optim.Adam(objective.parameters(), fused=True)
    engine = make_engine(objective, optimizer, world, zero_stage=stage)
    for step, batch in enumerate(_batches(sizes, rows, world)):
        started = time.perf_counter()
        with Counted() as counted:
            engine.backward(torch.stack(list(engine(batch, step).values())).sum(), last=True)
            engine.step()
        seconds = time.perf_counter() - started
    memory = _anonymous() - empty
    return sum(counted.bytes.values()), seconds, memory, _first_rows(engine, objective)


def _objective(sizes: Sizes, world: World, owners: World | None) -> Ranking:
    users, items, width = sizes
    torch.manual_seed(0)
    recommender = build_recommender(
        "bpr",
        num_users=users,
        num_items=items,
        train=Interactions(np.empty(0, np.int64), np.empty(0, np.int64)),
        features={},
        modalities=(),
        config=recommender_config("bpr", dim=width, reg_weight=0.1),
        owners=owners,
    )
    return Ranking(recommender, {}, False, world)


def _batches(sizes: Sizes, rows: int, world: World) -> Iterator[RankingBatch]:
    generator, total = torch.Generator().manual_seed(1), rows * world.size
    users, items, _ = sizes
    for _ in range(_STEPS):
        whole = [torch.randint(size, (total,), generator=generator) for size in (users, items, items)]
        yield RankingBatch(Batch(*(part.tensor_split(world.size)[world.rank] for part in whole)), total)


def _first_rows(engine: Engine, objective: Ranking) -> Tensor:
    """The first rows of both tables as the first rank would write them; every rank helps."""
    found = []
    for piece in engine.state(objective.trained())["weights"]:
        rows = next(blocks := piece.blocks())[:1000].detach().clone()
        found.append(rows)
        for _ in blocks:
            pass
    return torch.cat(found)


def _print_runs(folder: Path, sizes: Sizes, ranks: list[int], features: int | None) -> None:
    users, items, _ = sizes
    with redirect_stdout(io.StringIO()):
        _pack(folder, users, items, features)
    settings = _settings(folder, sizes, features)
    print("| ranks | tables | peak, MB a rank | largest difference |\n| --- | --- | --- | --- |")
    expected: dict[str, Tensor] = {}
    for number, tables in [(1, "whole"), *((number, tables) for number in ranks for tables in ("whole", "rows"))]:
        out = folder / f"{number}-{tables}"
        peaks = run_on_ranks(number, _peak_of_run, replace(settings, out=out, tables=tables))
        found = load_file(out / "recommender.safetensors")
        expected = expected or found
        difference = max(float((found[name] - table).abs().max()) for name, table in expected.items())
        print(f"| {number} | {tables} | {max(peaks) / 1e6:.0f} | {difference:.1e} |", flush=True)


def _pack(folder: Path, users: int, items: int, features: int | None) -> None:
    """Two interactions a user, which only train; 1,000 users have a third one."""
    rng = np.random.default_rng(0)
    user_E = np.concatenate([np.arange(2 * users) % users, np.arange(1000)])
    item_E = np.concatenate([rng.permutation(np.arange(2 * users) % items), rng.integers(0, items, 1000)])
    pl.DataFrame({"user_id": user_E, "item_id": item_E}).write_csv(folder / "interactions.csv")
    pack(PackConfig(interactions=folder / "interactions.csv", out=folder / "shards", core=0, split="random"))
    if features is not None:
        np.save(folder / "image.npy", rng.standard_normal((items, features), dtype=np.float32))
        words = ["--shards", str(folder / "shards"), "--image_npy", str(folder / "image.npy")]
        cli.run("features", [*words, "--out", str(folder / "features")])


def _settings(folder: Path, sizes: Sizes, features: int | None) -> Stage1Config:
    users, _, width = sizes
    recommender = "bpr" if features is None else "vbpr"
    return Stage1Config(
        shards=folder / "shards",
        features=None if features is None else folder / "features",
        out=folder,
        recommender=recommender,
        model=recommender_config(recommender, dim=width),
        batch_size=users // 5,
        lr=1e-3,
        epochs=1,
        checkpoint_every=4,
        device="cpu",
        tracking=TrackingConfig(enabled=False),
    )


def _peak_of_run(config: Stage1Config) -> float:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with _peak() as found:
        train_stage1(config)
    return found[0]


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Most anonymous memory while the block runs, beyond what there was before."""
    before, found, ended = _anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY):
            found[0] = max(found[0], _anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
