"""Memory that each command needs for another item, user and interaction: three slopes and what it takes for next to nothing.

    python -m benchmarks.command_memory --out DIR
    python -m benchmarks.command_memory --out DIR --commands pack --base 500000,50000,5000000 --more 1500000,500000,15000000
    python -m benchmarks.command_memory --out DIR --base 200000,100000,10000000 --more 800000,800000,20000000    # hours

Generated logs with features of width 64, ID embeddings of the default width. Every command runs in a process of its own over
four data sets: one, and that with more users, more items, or more interactions alone. A slope is the difference of the peaks of
anonymous memory, without pages of files, which the system may drop, divided by what was added. Linux only.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

WIDTH = 64
"""Width of the generated features."""
_EVERY = 0.02
"""Seconds between looks at a process."""
_PLAIN = ("--device", "cpu", "--tracking.enabled", "false")


_AXES = ("users", "items", "interactions")


def main() -> None:
    """Run every command over four data sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="20000,10000,1000000", help="USERS,ITEMS,INTERACTIONS")
    parser.add_argument("--more", default="100000,100000,2000000", help="what is added to one of them at a time")
    parser.add_argument(
        "--commands", nargs="+", help="names of the rows to measure; each needs what those that it reads wrote"
    )
    options = parser.parse_args()
    base, more = (np.array([int(number) for number in text.split(",")]) for text in (options.base, options.more))
    sizes = {"base": base} | {name: base + more * (np.arange(3) == axis) for axis, name in enumerate(_AXES)}
    peaks = {name: dict(_peaks(options.out / name, options.commands, *map(int, size))) for name, size in sizes.items()}
    print("| command | MB in all | bytes an interaction | a user | an item |\n| --- | --- | --- | --- | --- |")
    for command, peak in peaks["base"].items():
        user, item, interaction = (
            (peaks[name][command] - peak) / count for name, count in zip(_AXES, more, strict=True)
        )
        print(f"| `{command}` | {peak / 1e6:,.0f} | {interaction:,.0f} | {user:,.0f} | {item:,.0f} |", flush=True)


def _peaks(
    folder: Path, wanted: list[str] | None, users: int, items: int, interactions: int
) -> Iterator[tuple[str, float]]:
    """Name and peak memory in bytes of each command that is wanted over a data set."""
    folder = folder.resolve()
    folder.mkdir(parents=True)
    _generate(folder, users, items, interactions)
    for name, words in _commands(folder).items():
        if wanted is None or name in wanted:
            yield name, _peak(words, folder)


def _generate(folder: Path, users: int, items: int, interactions: int) -> None:
    """A log in which all items have interactions, the rest by a Zipf law of exponent 0.8, and features of all items.

    Once more with ratings and times, which are in no order.
    """
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 0.8
    drawn = np.searchsorted(weights.cumsum() / weights.sum(), rng.random(interactions - items)).clip(max=items - 1)
    chosen = np.concatenate([np.arange(items), drawn])
    log = {"user_id": rng.permutation(np.arange(interactions) % users), "item_id": chosen}
    pl.DataFrame(log).write_csv(folder / "interactions.csv")
    log |= {
        "rating": rng.integers(1, 11, interactions) / 2,
        "timestamp": rng.integers(14 * 10**8, 15 * 10**8, interactions),
    }
    pl.DataFrame(log).write_csv(folder / "timed.csv")
    np.save(folder / "text.npy", rng.standard_normal((items, WIDTH), dtype=np.float32))


def _commands(folder: Path) -> dict[str, list[str]]:
    """Name to command line, in the order in which they read what those before them wrote."""
    shards, features = ("--shards", f"{folder}/shards"), ("--features", f"{folder}/features")
    packs = {
        "pack": ["pack", "--interactions", f"{folder}/interactions.csv", "--core", "0", "--out", f"{folder}/shards"],
        "pack --split leave_one_out": [
            *("pack", "--interactions", f"{folder}/timed.csv", "--core", "0", "--split", "leave_one_out"),
            *("--out", f"{folder}/timed"),
        ],
    }
    train = {
        f"stage1 --recommender {name}": [
            *("stage1", *shards, *features, "--recommender", name, "--epochs", "1", "--out", f"{folder}/{name}"),
            *_PLAIN,
        ]
        for name in ("bpr", "lightgcn", "vbpr")
    }
    return {
        "doctor": ["doctor", "--interactions", f"{folder}/interactions.csv", "--core", "0"],
        **packs,
        "features": ["features", *shards, "--text_npy", f"{folder}/text.npy", "--out", f"{folder}/features"],
        **train,
        "evaluate": ["evaluate", "--run", f"{folder}/vbpr", "--device", "cpu"],
        "register": ["register", "--run", f"{folder}/bpr", "--name", "model"],
        "recommend --all": [
            *("recommend", "--model", "models:/model@candidate", "--all", "true", "--out", f"{folder}/lists.parquet"),
        ],
    }


def _peak(words: list[str], folder: Path) -> float:
    """Peak of anonymous memory of a command, in bytes; its output goes to `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    peak = 0.0
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ptmrec_dist", *words], stdout=log, stderr=log, env=environment, cwd=folder
        )
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(_EVERY)
    if process.returncode not in (0, 1):
        raise SystemExit(f"ptmrec {' '.join(words)} ended with exit code {process.returncode}; see {folder / 'log'}")
    return peak


def _anonymous(pid: int) -> float:
    """Bytes of a process that are no pages of files; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
