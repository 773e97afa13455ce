"""Metrics of a ranking by popularity: what a model must exceed for its users' preferences to count.

Shape suffixes: I items, B users.
"""

from dataclasses import replace

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import World
from ptmrec_dist.evaluation.scoring import Scorer
from ptmrec_dist.evaluation.tasks import Task
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.evaluate import Evaluator, Masking, Metrics


def evaluate_popularity(
    dataset: Dataset, recommender: Recommender, features: Features, world: World, masking: Masking
) -> Metrics:
    """Evaluate a ranking of items by their number of training interactions as a model is: same users, items and masking.

    Collective: every rank must call this.

    Args:
        dataset: The packed data set.
        recommender: The model, which decides what is left out of the ranking besides `masking`.
        features: Features of all items, on the model's device.
        world: This rank and its peers.
        masking: Items that are left out of the ranking.

    Returns:
        Metrics of every part but those of cold items, which have no training interactions.
    """
    found: Metrics = {}
    for phase in ("validation", "test"):
        found |= _PopularityEvaluator(dataset, phase, masking)(recommender, features, world)
    return found


class _PopularityEvaluator(Evaluator):
    """Ranks what a model's evaluation ranks, by popularity; ties by item index, as everywhere."""

    def tasks(self, recommender: Recommender, features: Features) -> dict[str, Task]:
        scorer = _popularity_scorer(self.dataset, next(recommender.parameters()).device)
        found = super().tasks(recommender, features)
        return {part: replace(task, scorer=scorer) for part, task in found.items() if not part.startswith("cold_")}


def _popularity_scorer(dataset: Dataset, device: torch.device) -> Scorer:
    """The same scores for every user, ascending with the number of training interactions."""
    counts_I = np.bincount(dataset.interactions("train").items, minlength=dataset.num_items)
    # Places among the distinct counts are few, and so exact as float32, which counts above 2^24 are not.
    places_I = torch.from_numpy(np.unique(counts_I, return_inverse=True)[1]).to(device, torch.float32)
    return Scorer(lambda users_B: places_I.new_ones(len(users_B), 1), places_I[:, None])
