"""Every recommender on two real movie data sets with frozen features: three seeds, one table per set.

python benchmarks/movies.py --data ../shared/data --out FOLDER

Each run is one `ptmrec stage1` with one thread. Hyper-parameters on movies-sparse were chosen on validation Recall@20 (seed 0),
except FREEDOM's; those on movies-small, except BPR's, are untuned defaults. Complete runs in FOLDER are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
TRAINING = {"lr": 0.002, "eval_every": 3, "patience": 8, "epochs": 400}
# Recommender to its hyper-parameters, by set; others are the recommender's defaults.
CHOSEN: dict[str, dict[str, dict[str, float]]] = {
    "movies-sparse": {
        "bpr": {"reg_weight": 0.1},
        "lightgcn": {"layers": 3, "reg_weight": 0.01},
        "vbpr": {"reg_weight": 0.1},
        "freedom": {},
        "mgcn": {"reg_weight": 0.1},
        "smore": {"reg_weight": 0.03},
    },
    "movies-small": {
        "bpr": {"reg_weight": 0.01},
        "lightgcn": {},
        "vbpr": {},
        "freedom": {},
        "mgcn": {},
        "smore": {},
    },
}


def main() -> None:
    """Pack both sets, train every recommender with every seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of movies-small, movies-sparse and clip-xs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(CHOSEN), default=list(CHOSEN))
    parser.add_argument("--recommenders", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for name in options.sets:
        folder = options.out / name
        _prepare(options.data, name, folder)
        chosen = {key: CHOSEN[name][key] for key in options.recommenders or CHOSEN[name]}
        found = {key: [_train(folder, key, hyper, seed) for seed in options.seeds] for key, hyper in chosen.items()}
        _print(name, found)


def _prepare(data: Path, name: str, folder: Path) -> None:
    shards, features, movies = folder / "shards", folder / "features", data / "movies-small"
    if not (shards / "manifest.json").exists():
        tables = ("--items", movies / "items.csv", "--images", movies)
        _ptmrec("pack", *tables, "--interactions", data / name / "interactions.csv", "--out", shards)
    if not (features / "manifest.json").exists():
        _ptmrec("features", "--shards", shards, "--encoder.model", data / "clip-xs", "--out", features)


def _train(folder: Path, recommender: str, hyper: dict[str, float], seed: int) -> dict[str, dict[str, float]]:
    run = folder / "-".join([recommender, *(f"{name}={value}" for name, value in hyper.items()), f"seed{seed}"])
    if not (run / "metrics.json").exists():
        settings = [(f"--{name}", value) for name, value in TRAINING.items()]
        settings += [(f"--model.{name}", value) for name, value in hyper.items()]
        inputs = ("--shards", folder / "shards", "--features", folder / "features", "--recommender", recommender)
        flat = [argument for setting in settings for argument in setting]
        _ptmrec("stage1", *inputs, *flat, "--seed", seed, "--tracking.enabled", "false", "--out", run)
    metrics: dict[str, dict[str, float]] = json.loads((run / "metrics.json").read_text())
    return metrics


def _print(name: str, found: dict[str, list[dict[str, dict[str, float]]]]) -> None:
    columns = [(part, metric) for part in ("validation", "test") for metric in ("recall@20", "ndcg@20")]
    print(f"\n{name}, mean ± standard deviation over seeds")
    print(f"{'':<10}" + "".join(f"{part + ' ' + metric:>22}" for part, metric in columns))
    for recommender, runs in found.items():
        cells = []
        for part, metric in columns:
            values = np.array([run[part][metric] for run in runs])
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}")
        print(f"{recommender:<10}" + "".join(f"{cell:>22}" for cell in cells))


def _ptmrec(*arguments: object) -> None:
    line = [str(Path(sys.executable).parent / "ptmrec"), *map(str, arguments)]
    print(" ".join(line), flush=True)
    subprocess.run(line, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
