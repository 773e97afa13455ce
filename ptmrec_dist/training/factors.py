"""Initial embeddings by matrix factorisation: `implicit`'s alternating least squares.

Shape suffixes: U users, I items, D width.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.evaluation.ranking import metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import table_scorer
from ptmrec_dist.training.evaluator import sampled_histories
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.ranking_evaluation import MOST_USERS

_CONFIDENCE, _ITERATIONS = 20.0, 15
# Relative to the singular value that a matrix of as many ones has at least, at this confidence. Which one is best differs by a
# factor of ten between sparse and dense data: the one of the best validation metric is taken.
_REGULARISATIONS = (0.05, 0.15, 0.4, 0.8)


def start_from_als(
    dataset: Dataset, dim: int, seed: int, timeout: float, objective: RecommenderObjective, world: World
) -> None:
    """Let a recommender start from factors of the training interactions, which the first rank computes for all.

    Hu et al., Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008, https://doi.org/10.1109/ICDM.2008.22.

    Collective: every rank must call this.

    Args:
        dataset: Packed data set.
        dim: Width of the embeddings.
        seed: Seed of the factorisation.
        timeout: Seconds that ranks wait for the first.
        objective: The objective of a recommender that `starts_from_factors`, freshly initialised.
        world: This rank and its peers.

    Raises:
        UserError: `implicit` is not installed.
        Fault: A rank was lost.
    """
    _least_squares()  # every rank refuses alike where it is missing
    remedy = "run the same command again, with a longer --timeout if rank 0 was still computing the factors"
    with Heartbeat(world, timeout, remedy):
        factors = als_factors(dataset, dim, seed) if world.is_first else _no_factors(dataset, dim)
        users_UD, items_ID = (sum_over_ranks(table.to(world.device)) for table in factors)
    objective.recommender.start_from(users_UD, items_ID)


def _no_factors(dataset: Dataset, dim: int) -> tuple[Tensor, Tensor]:
    """What other ranks than the first add to its factors."""
    return torch.zeros(dataset.num_users, dim), torch.zeros(dataset.num_items, dim)


def als_factors(dataset: Dataset, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Factorise the training interactions, regularised as suits the validation part.

    Args:
        dataset: Packed data set.
        dim: Width of the factors D.
        seed: Seed.

    Returns:
        Users [U, D] and items [I, D], float32, of equal root mean squares; their dot product is near 1 for pairs that occur,
        else near 0.

    Raises:
        UserError: `implicit` is not installed.
    """
    positives = sampled_histories(dataset, "validation", most_users=MOST_USERS)
    seen = Histories(dataset.interactions("train"), dataset.num_users, dataset.num_items)

    def value(factors: tuple[Tensor, Tensor]) -> float:
        ranked = rank_positives(table_scorer(*factors), positives, seen)
        return float(metrics_of(ranked).values[SELECT].mean())

    users_UD, items_ID = max(_factorisations(seen, dim, seed), key=value)
    balance = (items_ID.square().mean() / users_UD.square().mean()).sqrt().sqrt()
    return users_UD * balance, items_ID / balance


def _least_squares() -> Callable[..., Any]:
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError as error:
        raise UserError(
            f"init: als needs the package implicit, which cannot be imported ({error}); pip install 'ptmrec-dist[als]'"
        ) from error
    factorise: Callable[..., Any] = AlternatingLeastSquares
    return factorise


def _factorisations(seen: Histories, dim: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    factorise = _least_squares()
    shape = (seen.num_users, seen.num_items)
    taken = csr_matrix((np.ones(len(seen.items), np.float32), seen.items, seen.starts), shape)
    strength = _CONFIDENCE * taken.nnz / math.sqrt(seen.num_users * seen.num_items)
    for regularisation in _REGULARISATIONS:
        model = factorise(
            dim,
            regularization=regularisation * strength,
            alpha=_CONFIDENCE,
            iterations=_ITERATIONS,
            random_state=seed,
            use_gpu=False,
        )
        model.fit(taken, show_progress=False)
        yield torch.tensor(model.user_factors), torch.tensor(model.item_factors)
