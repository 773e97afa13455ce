"""Ways of stage 2 on items that nobody has taken yet: the whole chain, several draws of the cold items, one table.

python benchmarks/cold_items.py --items items.csv --images DIR --interactions interactions.csv --encoder DIR --out FOLDER \
    --variant "frozen=--tuning.method none" --variant "prompts=" --variant "live=--teacher live"

Each draw holds out its own items and trains its own stage 1; all variants of stage 2 start from it. What is finished in
FOLDER is not run again, so that variants can be added. Test items are shown only with `--test`, once the variants have been
chosen on cold validation items.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ptmrec_dist.evaluation.tables import mean_of_seeds

UNTRACKED = ("--tracking.enabled", "false")
VARIANTS = ["frozen=--tuning.method none", "prompts="]


def main() -> None:
    """Run every draw's chain and print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("items", "images", "interactions", "encoder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stage1", default="--recommender vbpr", help="flags of stage 1")
    parser.add_argument("--stage2", default="", help="flags of stage 2 that all variants share")
    parser.add_argument("--metric", default="recall@20")
    parser.add_argument("--variant", action="append", help=f"NAME=FLAGS of stage 2 (by default {VARIANTS})")
    parser.add_argument(
        "--processes", type=int, default=1, help="runs at a time, the machine's threads divided among them"
    )
    parser.add_argument("--test", action="store_true", help="show test parts too")
    options = parser.parse_args()
    variants = dict(text.split("=", 1) for text in options.variant or VARIANTS)
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda draw: _start(options, draw), options.draws))
        jobs = [(draw, name) for name in variants for draw in options.draws]
        list(pool.map(lambda job: _tune(options, *job, variants[job[1]]), jobs))
    for part in ("cold_validation", "validation") + (("cold_test", "test") if options.test else ()):
        _print_table(options, part, ["stage1", *variants])


def _print_table(options: argparse.Namespace, part: str, names: list[str]) -> None:
    """A metric of every way, its gain over stage 1, and a t-test over draws, paired."""
    found = {name: np.array([_value(options, draw, name, part) for draw in options.draws]) for name in names}
    start = found["stage1"]
    print(f"\n| {part} | {options.metric} | over stage 1 | p | by draw |\n| --- | --- | --- | --- | --- |")
    for name, values in found.items():
        sure = f"{stats.ttest_rel(values, start).pvalue:.3f}" if name != "stage1" and len(values) > 1 else ""
        draws = " ".join(f"{value:.4f}" for value in values)
        gain = f"{values.mean() / start.mean() - 1:+.1%}"
        print(f"| {name} | {mean_of_seeds(values)} | {gain} | {sure} | {draws} |")


def _value(options: argparse.Namespace, draw: int, name: str, part: str) -> float:
    metrics: dict[str, Any] = json.loads((options.out / f"draw{draw}" / name / "metrics.json").read_text())
    return float(metrics[part][options.metric])


def _start(options: argparse.Namespace, draw: int) -> None:
    out = options.out / f"draw{draw}"
    shards, features, stage1 = out / "shards", out / "features", out / "stage1"
    tables = ("--items", options.items, "--images", options.images, "--interactions", options.interactions)
    if not (shards / "manifest.json").exists():
        _ptmrec(options, "pack", *tables, "--split", "cold_items", "--seed", draw, "--out", shards)
    if not (features / "manifest.json").exists():
        _ptmrec(options, "features", "--shards", shards, "--encoder.model", options.encoder, "--out", features)
    inputs = ("--shards", shards, "--features", features, "--seed", draw, "--out", stage1)
    if not (stage1 / "metrics.json").exists():
        _ptmrec(options, "stage1", *inputs, *UNTRACKED, *shlex.split(options.stage1))


def _tune(options: argparse.Namespace, draw: int, name: str, flags: str) -> None:
    out = options.out / f"draw{draw}"
    inputs = ("--stage1", out / "stage1", "--out", out / name, "--seed", draw)
    if not (out / name / "metrics.json").exists():
        _ptmrec(options, "stage2", *inputs, *UNTRACKED, *shlex.split(options.stage2), *shlex.split(flags))


def _ptmrec(options: argparse.Namespace, *arguments: object) -> None:
    """Run a command to its end, its output in `logs`."""
    line = [str(Path(sys.executable).parent / "ptmrec"), *map(str, arguments)]
    print(" ".join(line[1:]), flush=True)
    threads = str(max(1, (os.cpu_count() or 1) // options.processes))
    run = Path(str(arguments[arguments.index("--out") + 1]))
    log = options.out / "logs" / f"{run.parent.name}-{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": threads}, stdout=stream, stderr=stream)


if __name__ == "__main__":
    main()
