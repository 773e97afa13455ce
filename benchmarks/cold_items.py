"""Frozen against tuned features on items that nobody has taken yet: the whole chain, several seeds, one table.

python benchmarks/cold_items.py --items items.csv --images DIR --interactions interactions.csv --encoder DIR --out FOLDER

Each seed draws its own cold items and trains its own stage 1; both runs of stage 2 start from it, with the same settings
but `--tuning.method`. The best epoch is chosen on cold validation items; test items are looked at once, at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
PARTS = ("validation", "test", "cold_validation", "cold_test")


def main() -> None:
    """Run every seed's chain and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("items", "images", "interactions", "encoder", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recommender", default="vbpr")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--teacher", choices=["stage1", "live"], default="stage1")
    options = parser.parse_args()
    results = [_chain(options, seed) for seed in options.seeds]
    print(f"\ntest and validation Recall@20, {len(results)} seeds, {options.recommender}, {options.epochs} epochs")
    print(f"{'part':<16}{'frozen':>18}{'tuned':>18}{'gain':>8}   by seed")
    for part in PARTS:
        frozen, tuned = (
            np.array([result[method][part]["recall@20"] for result in results]) for method in ("none", "prompt")
        )
        gain = tuned.mean() / frozen.mean() - 1
        seeds = "  ".join(f"{before:.4f} > {after:.4f}" for before, after in zip(frozen, tuned, strict=True))
        spread = [
            f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}" for values in (frozen, tuned)
        ]
        print(f"{part:<16}{spread[0]:>18}{spread[1]:>18}{gain:>+8.1%}   {seeds}")


def _chain(options: argparse.Namespace, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    out = options.out / f"seed{seed}"
    shards, features, stage1 = out / "shards", out / "features", out / "stage1"
    tables = ("--items", options.items, "--images", options.images, "--interactions", options.interactions)
    if not (shards / "manifest.json").exists():
        _ptmrec("pack", *tables, "--split", "cold_items", "--seed", seed, "--out", shards)
    if not (features / "manifest.json").exists():
        _ptmrec("features", "--shards", shards, "--encoder.model", options.encoder, "--out", features)
    inputs = ("--shards", shards, "--features", features, "--recommender", options.recommender)
    _ptmrec("stage1", *inputs, "--seed", seed, "--out", stage1)
    found = {}
    for method in ("none", "prompt"):
        run = out / method
        arguments = (
            "--stage1",
            stage1,
            "--out",
            run,
            "--tuning.method",
            method,
            "--seed",
            seed,
            "--epochs",
            options.epochs,
            "--teacher",
            options.teacher,
        )
        _run("deepspeed", "--num_gpus", options.ranks, REPOSITORY / "launchers" / "stage2.py", *arguments)
        found[method] = json.loads((run / "metrics.json").read_text())
    return found


def _ptmrec(*arguments: object) -> None:
    _run("ptmrec", *arguments)


def _run(command: str, *arguments: object) -> None:
    line = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    print(" ".join(line), flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(line, check=True, env=os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)})


if __name__ == "__main__":
    main()
