"""What a model learned about items from their content: their popularity, or who takes them? And does it hold for new items?

python benchmarks/cold_auc.py "frozen=DIR/runs/split*-frozen-*" "tuned=DIR/runs/split*-two_stage-last2-*"

Each argument is a name and a pattern of run folders, one run for each split. Items are scored by their content alone: those of
training against training interactions, and the new ones of cold validation against theirs. Prints the mean over runs of two
areas under the ROC curve. By user: the probability that an item of the user scores above one that is not; predicting
popularity helps. By item: the probability that one of its users ranks it higher, within that user's scores, than another user
does; popularity does not help, only personal taste does.
"""

import argparse
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.evaluation.scoring import recent_items, scorer_of
from ptmrec_dist.evaluation.tables import mean_of_seeds
from ptmrec_dist.training.evaluator import Evaluator
from ptmrec_dist.training.finished_run import FinishedRun, load_run


def main() -> None:
    """Print a line for each name."""
    print_means(
        __doc__.splitlines()[0], ("training items, by user", "by item", "new items, by user", "by item"), _areas
    )


def print_means(description: str, columns: Sequence[str], measure: Callable[[Path], Sequence[float]]) -> None:
    """Print a line for each NAME=PATTERN of the command line, with the means over its run folders.

    Args:
        description: What the script is for.
        columns: Titles of the measures.
        measure: Run folder to the measures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("runs", nargs="+", metavar="NAME=PATTERN", help="run folders that differ in the split alone")
    options = parser.parse_args()
    print("| | runs |", " | ".join(columns), "|\n|", " | ".join(["---"] * (len(columns) + 2)), "|")
    for name, _, pattern in (given.partition("=") for given in options.runs):
        folders = sorted(Path(file).parent for file in glob(f"{pattern}/metrics.json"))
        if not folders:
            parser.error(f"{name}: no finished run in {pattern or name}; expected NAME=PATTERN of run folders")
        found = np.array([measure(folder) for folder in folders]).T
        print(f"| {name} | {len(folders)} | {' | '.join(map(mean_of_seeds, found))} |")


def _areas(folder: Path) -> tuple[float, float, float, float]:
    run = load_run(folder)
    part = Evaluator(run.dataset, "validation")
    if part.cold_items is None:
        raise SystemExit(f"{run.dataset.folder} has no cold items; expected data packed with --split cold_items")
    train = run.dataset.interactions("train")
    return _areas_of(run, np.unique(train.items), train) + _areas_of(run, part.cold_items, part.cold_positives)


def _areas_of(run: FinishedRun, items: np.ndarray, positives: Interactions) -> tuple[float, float]:
    model, chosen = run.recommender.eval(), torch.from_numpy(items)
    recent = recent_items(model, run.dataset, ("train",), torch.device("cpu"))
    with torch.no_grad():
        items_CD = model.cold_items({modality: table[chosen] for modality, table in run.features.items()})
        users_UD = scorer_of(model, run.features, recent).users(np.arange(run.dataset.num_users))
        scores_UC = model.score(users_UD, items_CD).numpy()
    taken_UC = np.zeros(scores_UC.shape, dtype=bool)
    taken_UC[positives.users, np.searchsorted(items, positives.items)] = True
    ranks_UC = rankdata(scores_UC, axis=1)  # scores of different users are on different scales
    return _mean_auc(scores_UC, taken_UC), _mean_auc(ranks_UC.T, taken_UC.T)


def _mean_auc(scores: np.ndarray, taken: np.ndarray) -> float:
    """Mean over the rows with both classes, by the Mann-Whitney statistic."""
    yes = taken.sum(axis=1)
    no = taken.shape[1] - yes
    both = (yes > 0) & (no > 0)
    above = (rankdata(scores, axis=1) * taken).sum(axis=1) - yes * (yes + 1) / 2
    return float(np.mean(above[both] / (yes * no)[both]))


if __name__ == "__main__":
    main()
