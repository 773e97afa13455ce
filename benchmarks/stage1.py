"""Cost of stage 1: CPU seconds per epoch and per evaluation, peak memory, and time to an accuracy.

    python benchmarks/stage1.py --interactions baby.inter
    python benchmarks/stage1.py --interactions baby.inter --to_accuracy 0.0754

One thread, one process per model, random features of the widths of the common Amazon data sets (4,096 for images, 384 for
texts), whose values do not affect the time. The tables of features are frozen, or trained with `--train_features`, as the
reference does. `reference` is the field's reference framework on the same set with features of the same widths, as published:
CPU seconds of a training epoch / an evaluation pass, where known. PyG's LightGCN module is measured in the same run, and
`implicit`'s ALS if it is installed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptmrec_dist.config.recommenders import RECOMMENDERS

REFERENCE: dict[str, tuple[float | None, float | None]] = {
    "bpr": (0.8, 4.5),
    "lightgcn": (4.3, 3.9),
    "vbpr": (9.0, 3.7),
    "freedom": (27.6, 3.4),
    "mgcn": (46.6, 4.6),
    "smore": (63.0, 5.5),
    "mmgcn": (188.0, None),
    "lattice": (75.0, None),
}
YARDSTICKS = ("pyg_lightgcn", "implicit_als")
# Sequence models need the order of a user's interactions, which such files lack.
MODELS = tuple(name for name, entry in RECOMMENDERS.items() if ".sequential." not in entry.path)
WIDTHS = {"image": 4096, "text": 384}
# LightGCN as chosen on validation Recall@20 (benchmarks/baby.py).
FAST = {"lr": 5e-3, "batch_size": 1024, "model": {"reg_weight": 0.03, "layers": 2}}


def main() -> None:
    """Measure every model in a separate process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=Path, required=True, help="an .inter file with x_label")
    parser.add_argument("--models", nargs="+", default=[*MODELS, *YARDSTICKS])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train_features", action="store_true", help="train the tables of features, too")
    parser.add_argument("--to_accuracy", type=float, help="time LightGCN until it reaches this test Recall@20")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _prepare(options.interactions, Path(folder))
        names = ["lightgcn"] if options.to_accuracy else options.models
        results = [_in_a_process(name, Path(folder)) for name in names]
    if options.to_accuracy:
        print(json.dumps(results[0], indent=1))
    else:
        _print_table(results)


def _in_a_process(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", *sys.argv, "--one", name, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(name, result, file=sys.stderr, flush=True)
    return {"model": name, **result}


def _prepare(interactions: Path, folder: Path) -> None:
    import numpy as np

    from ptmrec_dist.config import PackConfig
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.data.feature_store import write_features
    from ptmrec_dist.data.pack import pack

    pack(PackConfig(interactions=interactions, out=folder / "shards", split="given", core=0))
    dataset, rng = Dataset(folder / "shards"), np.random.default_rng(0)
    tables = {name: rng.standard_normal((dataset.num_items, width), np.float32) for name, width in WIDTHS.items()}
    tables = {name: table / np.linalg.norm(table, axis=1, keepdims=True) for name, table in tables.items()}
    settings = {"model": "random", "pretrained": None}
    write_features(folder / "features", tables, data=dataset.fingerprint, encoder="random", settings=settings)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.one == "pyg_lightgcn":
        result = _pyg_lightgcn(options.folder)
    elif options.one == "implicit_als":
        result = _implicit_als(options.folder)
    elif options.to_accuracy:
        result = _time_to(options.to_accuracy, options.folder)
    else:
        result = _stage1(options.one, options.folder, options.epochs, options.train_features)
    return result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _stage1(name: str, folder: Path, epochs: int, train_features: bool) -> dict[str, Any]:
    from ptmrec_dist.training import stage1  # noqa: F401  imported before anything is timed

    started = time.process_time()
    with _trainer(name, folder, train_features=train_features) as (trainer, dataset):
        built = time.process_time() - started
        evaluate = _evaluator(dataset, "validation")
        training, evaluation = [], []
        for _ in range(epochs):
            started = time.process_time()
            _train_epoch(trainer)
            trained = time.process_time()
            evaluate(trainer)
            training.append(trained - started)
            evaluation.append(time.process_time() - trained)
    return {"build": built, "epoch": sorted(training)[epochs // 2], "evaluation": sorted(evaluation)[epochs // 2]}


@contextmanager
def _trainer(name: str, folder: Path, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """A trainer of stage 1 and its data set."""
    from ptmrec_dist.allocator import keep_freed_memory
    from ptmrec_dist.config import Stage1Config, TrackingConfig, recommender_config
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.distributed import join_world
    from ptmrec_dist.training.inputs import open_store
    from ptmrec_dist.training.run_folder import RunFolder
    from ptmrec_dist.training.session import open_session
    from ptmrec_dist.training.stage1 import make_objective, make_trainer

    keep_freed_memory()
    model = recommender_config(name, **settings.pop("model", {}))
    config = Stage1Config(
        shards=folder / "shards",
        features=folder / "features",
        out=folder / f"run-{name}",
        checkpoint_every=10**9,
        tracking=TrackingConfig(enabled=False),
        recommender=name,
        model=model,
        device="cpu",
        **settings,
    )
    dataset, world = Dataset(config.shards), join_world("cpu")
    objective = make_objective(config, dataset, open_store(config, dataset), world)
    with open_session(config, RunFolder(config.out, config, {}), world, {}) as session:
        yield make_trainer(config, session, objective, dataset), dataset


def _train_epoch(trainer: Any) -> None:
    trainer.train_epoch()
    trainer.state.epoch, trainer.state.step = trainer.state.epoch + 1, 0


def _evaluator(dataset: Any, phase: str) -> Callable[[Any], dict[str, dict[str, float]]]:
    from ptmrec_dist.training.evaluate import Evaluator

    evaluator = Evaluator(dataset, phase)
    return lambda trainer: evaluator(trainer.objective.recommender, trainer.objective.features, trainer.world)


def _time_to(target: float, folder: Path) -> dict[str, Any]:
    """Seconds until the best epoch on validation has the target test Recall@20; test evaluations are not timed."""
    from ptmrec_dist.training import stage1  # noqa: F401  imported before anything is timed

    started, aside, best = time.process_time(), 0.0, 0.0
    with _trainer("lightgcn", folder, **FAST) as (trainer, dataset):
        validation, test = (_evaluator(dataset, phase) for phase in ("validation", "test"))
        for epoch in range(200):
            _train_epoch(trainer)
            found = validation(trainer)["validation"]["recall@20"]
            if found <= best:
                continue
            best, paused = found, time.process_time()
            reached = test(trainer)["test"]["recall@20"]
            aside += time.process_time() - paused
            if reached >= target:
                seconds = time.process_time() - started - aside
                return {"settings": FAST, "epochs": epoch + 1, "validation": best, "test": reached, "seconds": seconds}
    raise SystemExit(f"200 epochs did not reach {target}")


def _pyg_lightgcn(folder: Path) -> dict[str, Any]:
    """Some steps of PyG's LightGCN module as in its documentation: width 64, 2 layers, 2,048 interactions per step."""
    import torch
    from torch_geometric.nn.models import LightGCN

    from ptmrec_dist.data.dataset import Dataset

    dataset, steps = Dataset(folder / "shards"), 5
    train = dataset.interactions("train")
    users, items = torch.tensor(train.users), torch.tensor(train.items) + dataset.num_users
    edges = torch.cat([torch.stack([users, items]), torch.stack([items, users])], dim=1)
    model = LightGCN(dataset.num_users + dataset.num_items, 64, 2)
    optimizer = torch.optim.Adam(model.parameters())
    started = time.process_time()
    for rows in torch.randperm(len(users)).split(2048)[:steps]:
        negatives = torch.randint(dataset.num_users, dataset.num_users + dataset.num_items, (len(rows),))
        pairs = torch.stack([users[rows].repeat(2), torch.cat([items[rows], negatives])])
        liked, other = model(edges, pairs).chunk(2)
        loss = model.recommendation_loss(liked, other, node_id=pairs.unique())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"epoch": (time.process_time() - started) / steps * -(-len(users) // 2048)}


def _implicit_als(folder: Path) -> dict[str, Any]:
    """`implicit`'s ALS with 64 factors: complete training, and ranking for all users."""
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError:
        return {}
    import numpy as np
    from scipy.sparse import csr_matrix

    from ptmrec_dist.data.dataset import Dataset

    dataset = Dataset(folder / "shards")
    train = dataset.interactions("train")
    seen = csr_matrix((np.ones(len(train.users)), (train.users, train.items)), (dataset.num_users, dataset.num_items))
    model = AlternatingLeastSquares(64, num_threads=1)
    started = time.process_time()
    model.fit(seen, show_progress=False)
    trained = time.process_time()
    model.recommend(np.arange(dataset.num_users), seen, 20)
    return {"training": trained - started, "evaluation": time.process_time() - trained}


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds of CPU, one thread; x: the reference's figure divided by ours")
    for heading in ("model", "epoch", "ref.", "x", "eval", "ref.", "x", "build", "GiB"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for result in results:
        cells = [result["model"]]
        for column, kind in enumerate(("epoch", "evaluation")):
            seconds, reference = result.get(kind), REFERENCE.get(result["model"], (None, None))[column]
            known = reference is not None and seconds is not None
            cells += [f"{seconds:.2f}" if seconds is not None else ""]
            cells += [f"{reference:.1f}", f"{reference / seconds:.1f}"] if known else ["", ""]
        cells += [f"{result['build']:.1f}" if "build" in result else "", f"{result['memory']:.2f}"]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
