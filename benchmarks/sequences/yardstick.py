"""SASRec here beside RecBole's and RecTools', and its losses beside each other, on one leave-one-out split.

    python -m benchmarks.sequences.yardstick --interactions interactions.csv --libraries VENV/bin/python

All have the same width, layers, heads, length, dropout, learning rate and targets of a step, and rank all items but the user's
earlier ones. Of each user the latest interactions are kept, three more than a model reads: RecTools trains on no others, so
that all train on the same targets. The epoch that is best on validation is measured on test. One process and one thread each;
seconds of CPU are those of training alone. RecBole and RecTools run in the environment that is named, without it ours alone:

    uv venv VENV && uv pip install --python VENV/bin/python recbole 'rectools[torch]'

What differs: RecBole repeats a history for each of its targets, and its networks have a GELU; RecTools normalises as the first
paper does, and its networks have the width of the items.

For the binary cross-entropies the table has the mean probability that a test item, other items, and the first item of a list
are the next one: the last is overconfident as far as it exceeds the share of lists whose first item is right (gSASRec, arXiv
2308.07192).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sequences.libraries import TOP, best_epoch, hits

OURS: dict[str, dict[str, Any]] = {
    "ours, all items": {"loss": "full"},
    "ours, in-batch": {},
    "ours, BCE, 1 negative": {"loss": "bce"},
    "ours, BCE, 256 negatives": {"loss": "bce", "num_negatives": 256},
    "ours, gBCE, 256 negatives": {"loss": "gbce", "num_negatives": 256},
}
"""Name of a row to settings of stage 1."""
LIBRARIES = {"RecBole, all items": "recbole", "RecTools, all items": "rectools"}
COLUMNS = ("validation", "hr", "ndcg", "epoch", "seconds", "memory", "positive", "other", "first", "right")


def main() -> None:
    """Measure every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=Path, required=True, help="CSV with user_id, item_id and timestamp")
    parser.add_argument("--libraries", type=Path, help="Python that has recbole and rectools")
    parser.add_argument("--rows", nargs="+", choices=(*OURS, *LIBRARIES))
    parser.add_argument("--whole", action="store_true", help="keep all interactions of each user; our rows alone")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_ours(OURS[options.one], options.folder)))
        return
    rows = options.rows or [*OURS, *(LIBRARIES if options.libraries and not options.whole else ())]
    if options.whole and set(rows) & set(LIBRARIES):
        parser.error(f"--whole: got --rows {' '.join(rows)}, expected our rows alone: {', '.join(OURS)}")
    with tempfile.TemporaryDirectory() as folder:
        _prepare(options, Path(folder))
        print("| SASRec |", " | ".join(COLUMNS), "|")
        print("| --- " * (len(COLUMNS) + 1) + "|")
        for row in rows:
            found = _in_a_process(row, options, Path(folder))
            print("|", row, "|", " | ".join(_cell(name, found) for name in COLUMNS), "|", flush=True)


def _cell(name: str, found: dict[str, float]) -> str:
    if name not in found:
        return ""
    return f"{found[name]:.0f}" if name in {"epoch", "seconds"} else f"{found[name]:.4f}"


def _in_a_process(row: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    if row in LIBRARIES:
        script = Path(__file__).resolve().with_name("libraries.py")
        command = [str(options.libraries.absolute()), "-W", "ignore", str(script), LIBRARIES[row], str(folder)]
        here = folder  # RecBole writes logs where it runs
    else:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sequences.yardstick", *sys.argv[1:]]
        command += ["--one", row, "--folder", str(folder)]
        here = Path.cwd()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, cwd=here, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    """Cut and pack the interactions, and write the sequences for the libraries."""
    import polars as pl

    from ptmrec_dist.config import PackConfig
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.data.packing.pack import pack

    rows = pl.read_csv(options.interactions, infer_schema=False)
    rows = rows.sort(pl.col("timestamp").cast(pl.Float64, strict=False), maintain_order=True)
    kept = rows if options.whole else rows.group_by("user_id").tail(options.length + 3)
    kept.write_csv(folder / "kept.csv")
    pack(PackConfig(interactions=folder / "kept.csv", out=folder / "shards", split="leave_one_out"))
    dataset = Dataset(folder / "shards")
    split: dict[str, Any] = {"train": [[] for _ in range(dataset.num_users)]}
    train = dataset.sequences("train")
    for user, item in zip(train.users.tolist(), train.items.tolist(), strict=True):
        split["train"][user].append(item)
    for phase in ("validation", "test"):
        pairs = dataset.interactions(phase)
        split[phase] = pairs.items[pairs.users.argsort()].tolist()
    settings = {name: getattr(options, name) for name in ("epochs", "length", "lr", "seed")}
    settings |= {"dim": 64, "layers": 2, "heads": 2, "dropout": 0.1, "batch_size": 512}
    (folder / "split.json").write_text(json.dumps({**split, "settings": settings}))


def _ours(chosen: dict[str, Any], folder: Path) -> dict[str, float]:
    from ptmrec_dist.allocator import keep_freed_memory
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.distributed import join_world
    from ptmrec_dist.training.run_folder import RunFolder
    from ptmrec_dist.training.session import open_session
    from ptmrec_dist.training.stage1 import make_objective, make_trainer

    keep_freed_memory()
    settings = json.loads((folder / "split.json").read_text())["settings"]
    config = _config(settings, chosen, folder)
    dataset, world = Dataset(config.shards), join_world("cpu")
    objective = make_objective(config, dataset, None, world)
    with open_session(config, RunFolder(config.out, config, {}), world, {}) as session:
        trainer = make_trainer(config, session, objective, dataset)

        def train() -> None:
            trainer.train_epoch()
            trainer.state.epoch, trainer.state.step = trainer.state.epoch + 1, 0

        return best_epoch(
            settings["epochs"],
            train,
            lambda phase: _measure(objective.recommender, dataset, phase, probabilities="bce" in config.loss),
        )


def _config(settings: dict[str, Any], chosen: dict[str, Any], folder: Path) -> Any:
    from ptmrec_dist.config import Stage1Config, TrackingConfig, recommender_config

    model = {name: settings[name] for name in ("dim", "layers", "heads", "dropout", "length")}
    return Stage1Config(
        shards=folder / "shards",
        out=folder / f"run-{len(list(folder.iterdir()))}",
        checkpoint_every=10**9,
        tracking=TrackingConfig(enabled=False),
        recommender="sasrec",
        model=recommender_config("sasrec", **model),
        device="cpu",
        **{name: settings[name] for name in ("lr", "seed", "batch_size")},
        **chosen,
    )


def _measure(recommender: Any, dataset: Any, phase: str, probabilities: bool) -> dict[str, float]:
    """Metrics of lists; where sigmoids are probabilities, also theirs of the targets, of other items and of first ones."""
    import torch

    from ptmrec_dist.evaluation.scoring import choose
    from ptmrec_dist.training.evaluator import Evaluator

    recommender.eval()
    task = Evaluator(dataset, phase).tasks(recommender, {})[phase]
    every = np.arange(dataset.num_users)
    blocks = task.scorer.blocks(every, *choose(dataset.num_items, None), task.seen)
    scores_UI = torch.cat([scores_BI.clone() for _, scores_BI in blocks])
    target_U = torch.from_numpy(task.positives.of(every).items)
    top_UK = scores_UI.topk(TOP).indices
    found = hits(top_UK.numpy(), target_U.numpy())
    if not probabilities:
        return found
    likely_UI = scores_UI.sigmoid()
    is_target_UI = torch.zeros_like(likely_UI, dtype=torch.bool).scatter_(1, target_U[:, None], 1)
    return found | {
        "positive": float(likely_UI[is_target_UI].mean()),
        "other": float(likely_UI[~is_target_UI & scores_UI.isfinite()].mean()),
        "first": float(likely_UI.amax(dim=1).mean()),
        "right": float((top_UK[:, 0] == target_U).float().mean()),
    }


if __name__ == "__main__":
    main()
