"""Linear maps from features to vectors that something else has learned.

Shape suffixes: I items, N items to learn from, D width of the vectors, X width of a modality's features.
"""

import torch
from torch import Tensor, nn

from ptmrec_dist.recommenders.base import Features

RIDGE = 0.003
"""Strength of the penalty; chosen on cold validation items."""


@torch.no_grad()
def fit_maps(maps: nn.ModuleDict, features: Features, items_N: Tensor, targets_ND: Tensor) -> None:
    """Fit each modality's map, by itself, to predict items' vectors from features: ridge regression, in closed form.

    An intercept is fitted and dropped: it would add the same to every item's score for a user. The penalty is `RIDGE`
    times the mean eigenvalue of the features' covariance, so that one strength suits features of any scale and width.

    Args:
        maps: Modality to a linear map without bias, d_m -> D; overwritten.
        features: Modality to its table, float32 [I, d_m].
        items_N: Items to learn from, int64 [N].
        targets_ND: Their vectors, float32 [N, D].
    """
    for modality, linear in maps.items():
        linear.get_parameter("weight").copy_(ridge_weights(features[modality][items_N], targets_ND, RIDGE).T)


def ridge_weights(inputs_NX: Tensor, targets_ND: Tensor, penalty: float) -> Tensor:
    """Solve a ridge regression with an intercept, which is left out: it is what maps the inputs' mean to the targets'.

    Args:
        inputs_NX: float32 [N, X].
        targets_ND: float32 [N, D].
        penalty: Strength, as a share of the mean eigenvalue of the inputs' covariance.

    Returns:
        Weights, float64 [X, D].
    """
    targets_ND = targets_ND - targets_ND.mean(dim=0)
    inputs_NX = inputs_NX - inputs_NX.mean(dim=0)
    gram_XX = (inputs_NX.T @ inputs_NX).double()
    gram_XX.diagonal().add_(penalty * gram_XX.diagonal().mean().clamp(min=1e-12))
    moments_XD = (inputs_NX.T @ targets_ND).double()
    weights_XD: Tensor = torch.cholesky_solve(moments_XD, torch.linalg.cholesky(gram_XX))
    return weights_XD
