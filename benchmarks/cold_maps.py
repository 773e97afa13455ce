"""How should a finished run score new items: by the maps that it has, or by maps fitted to its vectors of items?

python -m benchmarks.cold_maps "vbpr=DIR/runs/split*-vbpr-both-frozen-*" "freedom=DIR/runs/split*-freedom-both-frozen-*"

Each argument is a name and a pattern of run folders, one run for each split. Prints Recall@20 and NDCG@20 of cold validation:
with the run's own vectors of cold items, and with the mean over modalities of ridge regressions from features to the vectors
of items with training interactions. The test split is not read.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cold_auc import print_means
from ptmrec_dist.distributed import join_world
from ptmrec_dist.recommenders.ridge import Ridge
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.evaluator import Evaluator
from ptmrec_dist.training.finished_run import FinishedRun, load_run

METRICS = ("recall@20", "ndcg@20")


def main() -> None:
    """Print a line for each name."""
    print_means(__doc__.splitlines()[0], ("own Recall@20", "NDCG@20", "fitted Recall@20", "NDCG@20"), _metrics)


def _metrics(folder: Path) -> list[float]:
    run = load_run(folder, with_test=False)
    evaluator, model = Evaluator(run.dataset, "validation"), run.recommender.eval()
    if evaluator.cold_items is None:
        raise SystemExit(f"{run.dataset.folder} has no cold items; expected data packed with --split cold_items")
    own = evaluator(model, run.features, join_world("cpu"))["cold_validation"]
    maps = _fitted(run)

    def cold_items(features: Features) -> Tensor:
        return torch.stack([features[modality] @ weights for modality, weights in maps.items()]).mean(dim=0)

    model.cold_items = cold_items  # type: ignore[method-assign]
    fitted = evaluator(model, run.features, join_world("cpu"))["cold_validation"]
    return [part[metric] for part in (own, fitted) for metric in METRICS]


@torch.no_grad()
def _fitted(run: FinishedRun) -> dict[str, Tensor]:
    """Weights [d_m, D] by modality, each by the strength that predicts left-out items best."""
    warm_N = torch.tensor(run.dataset.interactions("train").items).unique()
    targets_ND = run.recommender.items(run.features, run.recommender.tables(run.features))[warm_N]
    tables = {modality: run.features[modality][warm_N] for modality in run.recommender.modalities}
    return {modality: Ridge(table_NX).weights(table_NX, targets_ND).float() for modality, table_NX in tables.items()}


if __name__ == "__main__":
    main()
