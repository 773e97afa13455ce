"""Quality against CPU seconds: recommenders that start from random numbers and from factors (`--init als`).

    python -m benchmarks.time_to_quality --interactions baby.inter

Stage 1 at its defaults, one thread, random features where features are read: only what follows from the interactions counts.
Every epoch is followed by an evaluation on validation, both are timed, and so is the factorisation, with its choice of a
regularisation on validation; the first evaluation of factors is that of `implicit` alone. Test is read, untimed, at each epoch
that is the best so far. The published figures are those of MMRec's evaluation on Amazon Baby.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.stage1 import evaluator, prepare, trainer_of

PUBLISHED = {"bpr": 0.0575, "lightgcn": 0.0754, "vbpr": 0.0663}
# LightGCN as chosen on validation Recall@20 (benchmarks/baby.py).
CHOSEN = {"lr": 5e-3, "batch_size": 1024, "model": {"reg_weight": 0.03, "layers": 2}}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bpr": ("bpr", {}),
    "vbpr": ("vbpr", {}),
    "lightgcn": ("lightgcn", {}),
    "lightgcn, chosen settings": ("lightgcn", CHOSEN),
}

_DIM = 64  # of all of them, by default


class Best(NamedTuple):
    """An epoch that is the best so far on validation."""

    epoch: int
    seconds: float
    validation: float
    test: float


def main() -> None:
    """Train every recommender from both starts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=Path, required=True, help="an .inter file with x_label")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of each training")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[*CELLS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.interactions, Path(folder))
        print(
            "| recommender | start | published test Recall@20: seconds | best validation (epoch, seconds) | its test |"
        )
        print("| --- | --- | --- | --- | --- |")
        for cell in options.cells:
            for init in (None, "als"):
                print(_line(cell, init, Path(folder), options.seconds), flush=True)


def _line(cell: str, init: str | None, folder: Path, seconds: float) -> str:
    name, settings = CELLS[cell]
    found = list(_best_epochs(name, init, folder, seconds, settings))
    reached = next((best for best in found if best.test >= PUBLISHED[name]), None)
    target = f"{PUBLISHED[name]}: " + (f"{reached.seconds:.0f}, epoch {reached.epoch}" if reached else "not reached")
    last = found[-1]
    kept = f"{last.validation:.4f} ({last.epoch}, {last.seconds:.0f})"
    return f"| {cell} | {init or 'random'} | {target} | {kept} | {last.test:.4f} |"


def _best_epochs(name: str, init: str | None, folder: Path, seconds: float, settings: dict[str, Any]) -> Iterator[Best]:
    """Every epoch that is the best so far; epoch 0 is that of the factors."""
    from ptmrec_dist.training.factors import start_from_als

    with trainer_of(name, folder, **settings) as (trainer, dataset):
        validation, test = (evaluator(dataset, phase) for phase in ("validation", "test"))
        work: list[Callable[[], None]] = (
            [] if init is None else [lambda: start_from_als(dataset, _DIM, 0, 600.0, trainer.objective, trainer.world)]
        )
        spent, best, epoch = 0.0, 0.0, -len(work)
        while spent < seconds:
            epoch += 1
            started = time.process_time()
            (work.pop() if work else lambda: _train_epoch(trainer))()
            found = validation(trainer)["validation"]["recall@20"]
            spent += time.process_time() - started
            if found > best:
                best = found
                yield Best(epoch, spent, found, test(trainer)["test"]["recall@20"])


def _train_epoch(trainer: Any) -> None:
    trainer.train_epoch()
    trainer.state.epoch, trainer.state.step = trainer.state.epoch + 1, 0


if __name__ == "__main__":
    main()
