"""What a model predicts about new items: their popularity, or who takes them?

python benchmarks/cold_auc.py --out FOLDER --ways stage1 frozen prompts        # FOLDER is that of cold_items.py

Prints for every way (a run folder of cold_items.py), on the cold validation items, the mean over splits of two areas under the
ROC curve. By user: the probability that an item of the user scores above one that is not; predicting popularity helps. By item:
the probability that one of its users ranks it higher, within that user's scores, than another user does; popularity does not
help, only personal taste does.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from ptmrec_dist.evaluation.scoring import recent_items, scorer_of
from ptmrec_dist.evaluation.tables import mean_of_seeds
from ptmrec_dist.training.evaluate import Evaluator
from ptmrec_dist.training.finished_run import load_run


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", required=True, help="names of run folders within each split's folder")
    options = parser.parse_args()
    print("| | splits | AUC by user | AUC by item |\n| --- | --- | --- | --- |")
    for way in options.ways:
        folders = sorted(path.parent for path in options.out.glob(f"split*/{way}/metrics.json"))
        if not folders:
            parser.error(f"--ways: {way} has no finished run in {options.out}/split*")
        by_user, by_item = np.array([_areas(folder) for folder in folders]).T
        print(f"| {way} | {len(folders)} | {mean_of_seeds(by_user)} | {mean_of_seeds(by_item)} |")


def _areas(folder: Path) -> tuple[float, float]:
    run = load_run(folder)
    part = Evaluator(run.dataset, "validation")
    assert part.cold_items is not None, f"{run.dataset.folder} has no cold items"
    model, cold = run.recommender.eval(), torch.from_numpy(part.cold_items)
    recent = recent_items(model, run.dataset, ("train",), torch.device("cpu"))
    with torch.no_grad():
        items_CD = model.cold_items({modality: table[cold] for modality, table in run.features.items()})
        users_UD = scorer_of(model, run.features, recent).users(np.arange(run.dataset.num_users))
        scores_UC = model.score(users_UD, items_CD).numpy()
    taken_UC = np.zeros(scores_UC.shape, dtype=bool)
    taken_UC[part.cold_positives.users, np.searchsorted(part.cold_items, part.cold_positives.items)] = True
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
