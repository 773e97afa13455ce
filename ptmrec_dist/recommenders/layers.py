"""Layers that several recommenders have in common, with their initialisation.

Shape suffixes: d_m width of a modality's features.
"""

from torch import nn

from ptmrec_dist.recommenders.rows import Features


def embedding_table(rows: int, dim: int) -> nn.Embedding:
    """Create an ID table with Xavier's uniform initialisation.

    Args:
        rows: Number of users or items.
        dim: Width of a vector.

    Returns:
        The table, [rows, dim].
    """
    table = nn.Embedding(rows, dim)
    nn.init.xavier_uniform_(table.weight)
    return table


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
