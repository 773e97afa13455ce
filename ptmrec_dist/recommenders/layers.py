"""Layers that several recommenders have in common, with their initialisation.

Shape suffixes: C items, S rows of a block, D width of a table, d_m or M width of a modality's features.
"""

import math

import torch
from torch import Tensor, nn

from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.rows import RowTable
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.rows import Features

_LEAST_SPREAD = 1e-6


class Standardisation(nn.Module):
    """Subtracts the mean of features, and divides by the standard deviation of all their columns together.

    Both are of the items with training interactions, or of all where there are none. Unit rows, as features are here, have much
    in common, so that recommenders which know items by them alone would start with all items nearly alike.

    Args:
        inputs: What the recommender is built from.
        modality: Whose features.
    """

    def __init__(self, inputs: Inputs, modality: str) -> None:
        super().__init__()
        rows_CM, trained = inputs.features[modality], inputs.warm_items()
        rows_CM = rows_CM[trained] if len(trained) else rows_CM
        self.centre_M: Tensor
        self.spread: Tensor
        self.register_buffer("centre_M", rows_CM.mean(dim=0))
        self.register_buffer("spread", rows_CM.var(dim=0, unbiased=False).mean().sqrt().clamp(min=_LEAST_SPREAD))

    def forward(self, rows_CM: Tensor) -> Tensor:
        """Standardise, [C, M]."""
        return (rows_CM - self.centre_M) / self.spread


def embedding_table(rows: int, dim: int, owners: World | None = None) -> nn.Embedding:
    """Create an ID table with Xavier's uniform initialisation.

    Args:
        rows: Number of users or items.
        dim: Width of a vector.
        owners: Ranks that the table is cut over by rows; by default this process holds it whole.

    Returns:
        The table, [rows, dim]; the same numbers however it is cut.
    """
    if owners is None:
        table = nn.Embedding(rows, dim)
        nn.init.xavier_uniform_(table.weight)
        return table
    cut, bound = RowTable(rows, dim, owners), math.sqrt(3) * math.sqrt(2 / (rows + dim))
    cut.initialise(torch.Tensor.normal_)  # the random numbers that `nn.Embedding` consumes first
    cut.initialise(lambda block_SD: block_SD.uniform_(-bound, bound))
    return cut


def modal_maps(features: Features, dim: int, bias: bool = False) -> nn.ModuleDict:
    """Create the linear maps W_m, with Xavier's uniform initialisation.

    Where scores are dot products with projected features, a bias would add the same constant to all of a user's scores, which
    changes no ranking, no difference of scores and no softmax over items.

    Args:
        features: Tables of the modalities, [I, d_m].
        dim: Width that features are mapped to.
        bias: Add a bias, zero at first.

    Returns:
        Modality to its map, [*, d_m] -> [*, dim].
    """
    return nn.ModuleDict({modality: linear_map(table.shape[1], dim, bias) for modality, table in features.items()})


def linear_map(width: int, dim: int, bias: bool = True) -> nn.Linear:
    """Create a linear map with Xavier's uniform initialisation.

    Args:
        width: Width of the inputs.
        dim: Width of the outputs.
        bias: Add a bias, zero at first.

    Returns:
        The map, [*, width] -> [*, dim].
    """
    linear = nn.Linear(width, dim, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
