"""What makes vectors of one modality's features, where a recommender knows items by features alone.

Shape suffixes: C chosen items, D width of the vectors, M width of the features.
"""

import math

from torch import Tensor, nn

from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.layers import Standardisation, linear_map

_INNER = 4  # times the width of the vectors, as in a transformer's networks


class FeatureProjection(nn.Module):
    """A network from features to vectors that are read in histories and scored by dot products.

    LN(W_2 GELU(W_1 x + b_1) + b_2), x: standardised features

    One linear map of frozen features learned next to nothing of which item follows which (docs/results.md). Without the
    normalisation scores would start far apart: states have length sqrt(D), while these vectors start with length 1.

    Args:
        inputs: What the recommender is built from.
        modality: Whose features.
        dim: Width D.
    """

    def __init__(self, inputs: Inputs, modality: str, dim: int) -> None:
        super().__init__()
        self.standard = Standardisation(inputs, modality)
        self.network = nn.Sequential(
            linear_map(inputs.features[modality].shape[1], _INNER * dim),
            nn.GELU(),
            linear_map(_INNER * dim, dim),
            nn.LayerNorm(dim),
        )
        nn.init.constant_(self.network[-1].get_parameter("weight"), 1 / math.sqrt(dim))

    def forward(self, rows_CM: Tensor) -> Tensor:
        """Project, [C, D]."""
        vectors_CD: Tensor = self.network(self.standard(rows_CM))
        return vectors_CD
