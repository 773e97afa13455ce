"""Variants of stage 2 on cold items: all stages, over several random splits, in one table.

python benchmarks/cold_items.py --items items.csv --images DIR --interactions interactions.csv --encoder DIR --out FOLDER \
    --variant "frozen=--tuning.method none" --variant "prompts=" --variant "live=--teacher live"

Each split (seed) holds out different items and trains its own stage 1, from which all variants of stage 2 start. Finished
runs in FOLDER are not repeated, so that variants can be added. Test metrics are shown only with `--test`, after variants
have been chosen on cold validation items.
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
from ptmrec_dist.hardware import cores

UNTRACKED = ("--tracking.enabled", "false")
VARIANTS = ["frozen=--tuning.method none", "prompts="]


def main() -> None:
    """Run all stages of every split and print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("items", "images", "interactions", "encoder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="seeds of the splits")
    parser.add_argument("--draws", type=_renamed, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--stage1", default="--recommender vbpr", help="flags of stage 1")
    parser.add_argument("--stage2", default="", help="common flags of stage 2")
    parser.add_argument("--metric", default="recall@20")
    parser.add_argument("--variant", action="append", help=f"NAME=FLAGS of stage 2 (by default {VARIANTS})")
    parser.add_argument(
        "--processes", type=int, default=1, help="runs at a time, the machine's threads divided among them"
    )
    parser.add_argument("--test", action="store_true", help="show test parts too")
    options = parser.parse_args()
    variants = dict(text.split("=", 1) for text in options.variant or VARIANTS)
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda split: _start(options, split), options.splits))
        jobs = [(split, name) for name in variants for split in options.splits]
        list(pool.map(lambda job: _tune(options, *job, variants[job[1]]), jobs))
    for part in ("cold_validation", "validation") + (("cold_test", "test") if options.test else ()):
        _print_table(options, part, ["stage1", *variants])


def _renamed(value: str) -> str:
    raise argparse.ArgumentTypeError(f"got {value}; the option is --splits now")


def _print_table(options: argparse.Namespace, part: str, names: list[str]) -> None:
    """A metric of every variant, its gain over stage 1, and a paired t-test over splits."""
    found = {name: np.array([_value(options, split, name, part) for split in options.splits]) for name in names}
    start = found["stage1"]
    print(f"\n| {part} | {options.metric} | over stage 1 | p | by split |\n| --- | --- | --- | --- | --- |")
    for name, values in found.items():
        p = f"{stats.ttest_rel(values, start).pvalue:.3f}" if name != "stage1" and len(values) > 1 else ""
        splits = " ".join(f"{value:.4f}" for value in values)
        gain = f"{values.mean() / start.mean() - 1:+.1%}"
        print(f"| {name} | {mean_of_seeds(values)} | {gain} | {p} | {splits} |")


def _value(options: argparse.Namespace, split: int, name: str, part: str) -> float:
    metrics: dict[str, Any] = json.loads((options.out / f"split{split}" / name / "metrics.json").read_text())
    return float(metrics[part][options.metric])


def _start(options: argparse.Namespace, split: int) -> None:
    out = options.out / f"split{split}"
    shards, features, stage1 = out / "shards", out / "features", out / "stage1"
    tables = ("--items", options.items, "--images", options.images, "--interactions", options.interactions)
    if not (shards / "manifest.json").exists():
        _ptmrec(options, "pack", *tables, "--split", "cold_items", "--seed", split, "--out", shards)
    if not (features / "manifest.json").exists():
        _ptmrec(options, "features", "--shards", shards, "--encoder.model", options.encoder, "--out", features)
    inputs = ("--shards", shards, "--features", features, "--seed", split, "--out", stage1)
    if not (stage1 / "metrics.json").exists():
        _ptmrec(options, "stage1", *inputs, *UNTRACKED, *shlex.split(options.stage1))


def _tune(options: argparse.Namespace, split: int, name: str, flags: str) -> None:
    out = options.out / f"split{split}"
    inputs = ("--stage1", out / "stage1", "--out", out / name, "--seed", split)
    if not (out / name / "metrics.json").exists():
        _ptmrec(options, "stage2", *inputs, *UNTRACKED, *shlex.split(options.stage2), *shlex.split(flags))


def _ptmrec(options: argparse.Namespace, *arguments: object) -> None:
    """Run a command, with its output in `logs`."""
    line = [str(Path(sys.executable).parent / "ptmrec"), *map(str, arguments)]
    print(" ".join(line[1:]), flush=True)
    threads = str(max(1, cores() // options.processes))
    run = Path(str(arguments[arguments.index("--out") + 1]))
    log = options.out / "logs" / f"{run.parent.name}-{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": threads}, stdout=stream, stderr=stream)


if __name__ == "__main__":
    main()
