"""Cost of stage 1 beside MMRec: CPU seconds per epoch and per evaluation, and peak memory.

    python -m benchmarks.stage1 --interactions baby.inter --mmrec CHECKOUT
    python -m benchmarks.stage1 --interactions baby.inter --device cuda        # ours alone: seconds of the GPU, and its memory

One thread, one process per model, random features of the widths of the common Amazon data sets (4,096 for images, 384 for
texts), whose values do not affect the time. Every recommender is measured in turn with the same one of MMRec, where a checkout
of it is named: the same batches, neighbours and layers, feature tables frozen on both sides, and again trained on both sides.
MMRec's MMGCN and SLMRec are evaluated with the vectors of their last training batch, ours with those of the trained weights.
PyG's LightGCN module is measured in the same run, and `implicit`'s ALS, complete training, if it is installed. An epoch is its
first step and the median of `--steps` others, an evaluation is the fastest of three; only ratios of one run mean something, for
seconds depend on what else the machine does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import peak_bytes
from benchmarks.reference import MMREC, TRAINS_TABLES, implicit_als, mmrec, pyg_lightgcn, timed_calls, timed_steps
from ptmrec_dist.config.recommenders import RECOMMENDERS

YARDSTICKS = ("pyg_lightgcn", "implicit_als")
# Sequence models need the order of a user's interactions, which such files lack.
MODELS = tuple(name for name, entry in RECOMMENDERS.items() if ".sequential." not in entry.path)
WIDTHS = {"image": 4096, "text": 384}
# MMRec trains neither IDs nor preferences of MMGCN.
EQUAL_WORK = {"mmgcn": {"frozen_ids": True}}


def main() -> None:
    """Measure every model in a separate process and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=Path, required=True, help="an .inter file with x_label")
    parser.add_argument("--models", nargs="+", default=[*MODELS, *YARDSTICKS])
    parser.add_argument("--mmrec", type=Path, help="checkout of MMRec to measure beside")
    parser.add_argument("--steps", type=int, default=12, help="steps of an epoch that are measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tables", nargs="+", choices=("frozen", "trained"), default=["frozen", "trained"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--side", default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda":
        if options.mmrec:
            parser.error("--mmrec: it is measured on a CPU only, leave out --device cuda")
        options.models = [name for name in options.models if name not in YARDSTICKS]
    if options.one:
        print(json.dumps(_measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.interactions, Path(folder))
        print("| model | tables | epoch, theirs / ours | evaluation, theirs / ours | GiB, theirs / ours |")
        print("| --- | --- | --- | --- | --- |")
        for name in options.models:
            for tables in options.tables if name in TRAINS_TABLES else ["frozen"]:
                theirs = options.mmrec is not None and name in MMREC
                found = _in_a_process(name, "ours", tables, Path(folder))
                beside = _in_a_process(name, "mmrec", tables, Path(folder)) if theirs else {}
                cells = [_ratio(beside, found, kind) for kind in ("epoch", "evaluation", "memory")]
                print("|", " | ".join([name, tables if RECOMMENDERS.get(name) else "", *cells]), "|", flush=True)


def _ratio(theirs: dict[str, float], ours: dict[str, float], kind: str) -> str:
    if kind not in ours:
        return ""
    if kind not in theirs:
        return f"{ours[kind]:.2f}"
    return f"{theirs[kind]:.2f} / {ours[kind]:.2f} = {theirs[kind] / ours[kind]:.1f}"


def _in_a_process(name: str, side: str, tables: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stage1", *sys.argv[1:]]
    command += ["--one", name, "--side", side, "--tables", tables, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(name, side, tables, result, file=sys.stderr, flush=True)
    return result


def prepare(interactions: Path, folder: Path) -> None:
    """Pack interactions split by their `x_label`, and write random features of all items.

    Args:
        interactions: An .inter file.
        folder: Folder for both.
    """
    import numpy as np

    from ptmrec_dist.config import PackConfig
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.data.feature_store import write_features
    from ptmrec_dist.data.packing.pack import pack

    pack(PackConfig(interactions=interactions, out=folder / "shards", split="given", core=0))
    dataset, rng = Dataset(folder / "shards"), np.random.default_rng(0)
    tables = {name: rng.standard_normal((dataset.num_items, width), np.float32) for name, width in WIDTHS.items()}
    tables = {name: table / np.linalg.norm(table, axis=1, keepdims=True) for name, table in tables.items()}
    settings = {"model": "random", "pretrained": None}
    write_features(folder / "features", tables, data=dataset.fingerprint, encoder="random", settings=settings)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    train_tables = options.tables == ["trained"]
    if options.one == "pyg_lightgcn":
        result = pyg_lightgcn(options.folder, options.steps)
    elif options.one == "implicit_als":
        result = implicit_als(options.folder)
    elif options.side == "mmrec":
        features = options.folder / "features"
        result = mmrec(options.mmrec, options.one, options.interactions, features, options.steps, train_tables)
    else:
        result = _stage1(options, train_tables)
    return result | {"memory": peak_bytes(torch.device(options.device)) / 2**30}


def _stage1(options: argparse.Namespace, train_features: bool) -> dict[str, Any]:
    from ptmrec_dist.training import stage1  # noqa: F401  imported before anything is timed

    name, device = options.one, torch.device(options.device)
    settings = {"train_features": train_features, "model": EQUAL_WORK.get(name, {}), "device": options.device}
    with trainer_of(name, options.folder, **settings) as (trainer, dataset):
        evaluate = evaluator(dataset, "validation")
        epoch = timed_steps(_steps(trainer), options.steps, trainer.batches.steps(0), device)
        return {"epoch": epoch, "evaluation": timed_calls(lambda: evaluate(trainer), device)}


def _steps(trainer: Any) -> Iterator[Callable[[], None]]:
    """The steps of an epoch; the first one includes what precedes them, and every one the sampling of its batch."""
    windows: Iterator[Any] = iter(())

    def first() -> None:
        nonlocal windows
        trainer.objective.train()
        trainer.objective.rebuild(trainer.world)
        trainer.objective.start_epoch(trainer.generator)
        windows = trainer.batches.epoch(0, 0, trainer.generator)
        trainer.train_step(next(windows))

    yield first
    while True:
        yield lambda: trainer.train_step(next(windows))


@contextmanager
def trainer_of(name: str, folder: Path, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """Make a trainer of stage 1, on a CPU unless `device` says otherwise.

    Args:
        name: Recommender.
        folder: Folder that `prepare` filled.
        **settings: Settings of stage 1; `model` are those of the recommender.

    Yields:
        The trainer and its data set.
    """
    from ptmrec_dist.allocator import keep_freed_memory
    from ptmrec_dist.config import Stage1Config, TrackingConfig, recommender_config
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.distributed import join_world
    from ptmrec_dist.training.inputs import open_store
    from ptmrec_dist.training.run_folder import RunFolder
    from ptmrec_dist.training.session import open_session
    from ptmrec_dist.training.stage1 import make_objective, make_trainer

    keep_freed_memory()
    model, device = recommender_config(name, **settings.pop("model", {})), settings.pop("device", "cpu")
    config = Stage1Config(
        shards=folder / "shards",
        features=folder / "features",
        out=folder / f"run-{name}-{len(list(folder.iterdir()))}",
        checkpoint_every=10**9,
        tracking=TrackingConfig(enabled=False),
        recommender=name,
        model=model,
        device=device,
        **settings,
    )
    dataset, world = Dataset(config.shards), join_world(device)
    objective = make_objective(config, dataset, open_store(config, dataset), world)
    with open_session(config, RunFolder(config.out, config, {}), world, {}) as session:
        yield make_trainer(config, session, objective, dataset), dataset


def evaluator(dataset: Any, phase: str) -> Callable[[Any], dict[str, dict[str, float]]]:
    """Make a function that evaluates a trainer's recommender.

    Args:
        dataset: Packed data set.
        phase: `validation` or `test`.

    Returns:
        Function of a trainer; metrics by part.
    """
    from ptmrec_dist.training.evaluator import Evaluator

    part = Evaluator(dataset, phase)
    return lambda trainer: part(trainer.objective.recommender, trainer.objective.features, trainer.world)


if __name__ == "__main__":
    main()
