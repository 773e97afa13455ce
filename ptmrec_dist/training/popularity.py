"""Metrics of a ranking by popularity: what a model must exceed for its users' preferences to count.

Shape suffixes: I items, B users.
"""

from dataclasses import replace

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.scoring import Scorer
from ptmrec_dist.evaluation.tasks import Task
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.evaluator import Evaluator


class PopularityEvaluator(Evaluator):
    """Ranks what a model's evaluation ranks, for the same users, by the number of training interactions; ties by item index."""

    def tasks(self, recommender: Recommender, features: Features) -> dict[str, Task]:
        """Return what is ranked in each part of the phase but those of cold items, which have no training interactions.

        Args:
            recommender: The model, which decides what is left out of the ranking besides the masking.
            features: Features of all items, [I, d_m], on the model's device.

        Returns:
            Part to what is ranked, and for whom; in a merged data set the parts of each source.
        """
        scorer = _popularity_scorer(self.dataset, next(recommender.parameters()).device)
        found = super().tasks(recommender, features)
        return {part: replace(task, scorer=scorer) for part, task in found.items() if not part.startswith("cold_")}

    def warn_of_repeats(self, recommender: Recommender) -> None:
        """Do nothing: the evaluation of the model itself warns of the same positives."""


def _popularity_scorer(dataset: Dataset, device: torch.device) -> Scorer:
    """The same scores for every user, ascending with the number of training interactions."""
    counts_I = np.bincount(dataset.interactions("train").items, minlength=dataset.num_items)
    # Places among the distinct counts are few, and so exact as float32, which counts above 2^24 are not.
    places_I = torch.from_numpy(np.unique(counts_I, return_inverse=True)[1]).to(device, torch.float32)
    return Scorer(lambda users_B: places_I.new_ones(len(users_B), 1), places_I[:, None])
