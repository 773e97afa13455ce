"""Amazon Baby, interactions only: the ID-only recommenders over several seeds, beside published figures.

    python benchmarks/baby.py --interactions baby.inter --out runs/baby

Hyper-parameters were chosen on validation Recall@20 with seed 0; the best epoch of each run is selected on validation, and
test is evaluated once, at its end. Published figures are Recall@20 in Table 1 of PTMRec, whose hyper-parameters, like those of
the underlying framework, were chosen on test. Each run is one command with one thread; the commands are printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

PUBLISHED = {"bpr": 0.0575, "lightgcn": 0.0754, "buir": 0.0788}
# LightGCN and BPR are still improving slowly when they are stopped; BUIR has converged.
CHOSEN = {
    "bpr": ["--model.reg_weight", "0.1", "--lr", "1e-3", "--epochs", "100", "--eval_every", "5"],
    "lightgcn": [
        "--model.reg_weight",
        "0.03",
        "--lr",
        "5e-3",
        "--batch_size",
        "1024",
        "--epochs",
        "30",
        "--eval_every",
        "3",
    ],
    "buir": ["--epochs", "120", "--eval_every", "10"],
}


def main() -> None:
    """Train every model with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=Path, required=True, help="baby.inter, with x_label")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=[*CHOSEN])
    options = parser.parse_args()
    shards = options.out / "shards"
    if not (shards / "manifest.json").exists():
        given = ("--split", "given", "--core", "0")
        _run("pack", "--interactions", options.interactions, *given, "--out", shards)
    lines = []
    for model in options.models:
        runs = [options.out / f"{model}-{seed}" for seed in options.seeds]
        for seed, run in zip(options.seeds, runs, strict=True):
            arguments = ("--recommender", model, *CHOSEN[model], "--seed", seed, "--tracking.enabled", "false")
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            _run("stage1", "--shards", shards, "--out", run, *arguments)
            print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f} s of CPU", flush=True)
        lines.append(_line(model, runs))
    print("\nmodel     published  test Recall@20 (mean ± sd)  difference  validation  by seed")
    print("\n".join(lines))


def _line(model: str, runs: list[Path]) -> str:
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    test, validation = (np.array([found[part]["recall@20"] for found in metrics]) for part in ("test", "validation"))
    spread = f"{test.mean():.4f} ± {test.std(ddof=1) if len(test) > 1 else 0:.4f}"
    seeds = " ".join(f"{value:.4f}" for value in test)
    gain = test.mean() / PUBLISHED[model] - 1
    return f"{model:<10}{PUBLISHED[model]:>9.4f}{spread:>28}{gain:>+12.1%}{validation.mean():>12.4f}  {seeds}"


def _run(*arguments: object) -> None:
    line = [str(Path(sys.executable).parent / "ptmrec"), *map(str, arguments)]
    print(" ".join(["ptmrec", *line[1:]]), flush=True)
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
