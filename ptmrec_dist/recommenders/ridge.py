"""Linear maps from features to learned vectors.

Shape suffixes: I items, N items to learn from, D width of the vectors, X width of a modality's features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.recommenders.rows import Features

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidate strengths of the penalty, as fractions of the mean eigenvalue of the inputs' covariance."""


@torch.no_grad()
def fit_maps(
    maps: nn.ModuleDict, features: Features, items_N: Tensor, targets_ND: Tensor, owners: World | None = None
) -> None:
    """Fit each modality's map separately to predict items' vectors from features: ridge regression, in closed form.

    An intercept is fitted and dropped: it would add the same constant to all of a user's scores. The best penalty depends
    on how informative the features are, so `best_strength` chooses one for each map.

    Collective where there are `owners`: every rank must call this, and has the same maps afterwards.

    Args:
        maps: Modality to a linear map without bias, d_m -> D; overwritten.
        features: Modality to its table, float32 [I, d_m].
        items_N: Items to learn from, as rows of `features`, int64 [N].
        targets_ND: Their vectors, float32 [N, D].
        owners: Ranks of which each has some of the items; by default this process has all.
    """
    for modality, linear in maps.items():
        inputs_NX = features[modality][items_N]
        strength = best_strength(inputs_NX, targets_ND, owners)
        linear.get_parameter("weight").copy_(ridge_weights(inputs_NX, targets_ND, strength, owners).T)


def best_strength(inputs_NX: Tensor, targets_ND: Tensor, owners: World | None = None) -> float:
    """Choose the strength by leave-one-out cross-validation of the cosine between prediction and vector.

    For a ridge regression this needs no refitting: with the leverage h_n of an item, its left-out residual is 1 / (1 - h_n)
    times its residual in the regression with it. The cosine is averaged, so that items count equally whatever the length
    of their vectors, which grows with their popularity.

    Args:
        inputs_NX: float32 [N, X].
        targets_ND: float32 [N, D].
        owners: As for `fit_maps`.

    Returns:
        One of `STRENGTHS`.

    Source: Allen, The relationship between variable selection and data augmentation, Technometrics 1974 (PRESS).
    """
    items = _total(inputs_NX.new_tensor(len(inputs_NX)), owners)
    inputs_NX, targets_ND = _centred(inputs_NX, owners), _centred(targets_ND, owners)
    eigenvalues_X, basis_XX = torch.linalg.eigh(_total(inputs_NX.T @ inputs_NX, owners).double())
    rotated_NX = inputs_NX @ basis_XX.float()
    moments_XD = _total(rotated_NX.T @ targets_ND, owners).double()

    def cosine(strength: float) -> float:
        inverse_X = 1 / (eigenvalues_X.clamp(min=0) + _damping(eigenvalues_X, strength))
        residuals_ND = targets_ND - rotated_NX @ (inverse_X[:, None] * moments_XD).float()
        leverage_N = rotated_NX.square() @ inverse_X.float() + 1 / items
        left_out_ND = targets_ND - residuals_ND / (1 - leverage_N).clamp(min=1e-6)[:, None]
        return (_total(F.cosine_similarity(left_out_ND, targets_ND).sum(), owners) / items).item()

    return max(STRENGTHS, key=cosine)


def ridge_weights(inputs_NX: Tensor, targets_ND: Tensor, strength: float, owners: World | None = None) -> Tensor:
    """Solve a ridge regression with an intercept, which is not returned: it maps the inputs' mean to the targets' mean.

    Args:
        inputs_NX: float32 [N, X].
        targets_ND: float32 [N, D].
        strength: The penalty, as a fraction of the mean eigenvalue of the inputs' covariance, so that one strength suits
            inputs of any scale and width.
        owners: As for `fit_maps`.

    Returns:
        Weights, float64 [X, D].
    """
    targets_ND, inputs_NX = _centred(targets_ND, owners), _centred(inputs_NX, owners)
    gram_XX = _total(inputs_NX.T @ inputs_NX, owners).double()
    gram_XX.diagonal().add_(_damping(gram_XX.diagonal(), strength))
    moments_XD = _total(inputs_NX.T @ targets_ND, owners).double()
    weights_XD: Tensor = torch.cholesky_solve(moments_XD, torch.linalg.cholesky(gram_XX))
    return weights_XD


def _centred(rows_NX: Tensor, owners: World | None) -> Tensor:
    """Subtract the mean of all rows."""
    rows = _total(rows_NX.new_tensor(len(rows_NX)), owners)
    return rows_NX - _total(rows_NX.sum(dim=0), owners) / rows


def _total(values: Tensor, owners: World | None) -> Tensor:
    """Sum over the ranks what each has computed of its items."""
    return values if owners is None else sum_over_ranks(values)


def _damping(variances_X: Tensor, strength: float) -> Tensor:
    """Value added to every variance; the same for eigenvalues and the diagonal, whose means are equal."""
    return strength * variances_X.mean().clamp(min=1e-12)
