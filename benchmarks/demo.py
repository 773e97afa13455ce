"""The demo over several seeds: what stage 2 and the refit change, with confidence intervals over seeds.

python benchmarks/demo.py --out FOLDER --seeds 0 1 2

A seed is a catalogue, an encoder and all training of its own. Finished demos in FOLDER are not repeated. Test metrics are shown
only with `--test`, after settings have been chosen on validation.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ptmrec_dist.demo_page import BASELINE, RUNS, metrics_of_runs
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.evaluation.significance import compare
from ptmrec_dist.evaluation.tables import mean_of_seeds


def main() -> None:
    """Run the demos and print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", action="store_true", help="show test parts too")
    options = parser.parse_args()
    folders = [options.out / f"demo-{seed}" for seed in options.seeds]
    for seed, folder in zip(options.seeds, folders, strict=True):
        if not (folder / "report.html").exists():
            command = [sys.executable, "-m", "ptmrec_dist", "demo", "--out", str(folder), "--seed", str(seed)]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for part in ("cold_validation", "validation") + (("cold_test", "test") if options.test else ()):
        _print_table(part, [metrics_of_runs(folder, part) for folder in folders])


def _print_table(part: str, found: list[dict[str, float]]) -> None:
    """Means over seeds, the difference from the baseline, its 95 % confidence interval over seeds, and p."""
    print(f"\n| {part} | {SELECT} | against {BASELINE} | 95 % interval | p |\n| --- | --- | --- | --- | --- |")
    base = np.array([values[BASELINE] for values in found])
    for name in RUNS:
        values = np.array([one[name] for one in found])
        change = compare(values, base)
        low, high = (100 * end / base.mean() for end in change.interval)
        compared = f"{change.difference / base.mean():+.1%} | {low:+.1f} to {high:+.1f} % | {change.t_test:.3f}"
        print(f"| {name} | {mean_of_seeds(values)} | {' | | ' if name == BASELINE else compared} |")


if __name__ == "__main__":
    main()
