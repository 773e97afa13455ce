"""MoRec: items from images and texts in place of IDs (Yuan et al., SIGIR 2023, arXiv 2303.13835).

    v_im = LN(W'_m GELU(W_m x_im + b_m) + b'_m),   e_i = mean over modalities of v_im,
    h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L),   score(u, i) = h_L . e_i

The paper has one modality; both are PMMRec's comparison "MoRec++" (arXiv 2312.09602), of which only that it joins them is
known. With `ptmrec joint` the encoder learns along, as in the paper; stage 1 leaves it frozen. The loss is in-batch
cross-entropy instead of binary cross-entropy against one negative, which the authors recommend since. Departures: the authors'
code has one linear map and a GELU between encoder and vectors; here a second map and a normalisation follow, and features are
standardised, without which frozen features teach little (`projection.py`).

Shape suffixes: C chosen items, B histories, L items, D width.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmrec_dist.config.content_sequences import MoRecConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequential.content import ContentRecommender
from ptmrec_dist.recommenders.sequential.projection import FeatureProjection
from ptmrec_dist.recommenders.sequential.transformer import CausalTransformer


class MoRec(ContentRecommender):
    """A causal transformer over projected features.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    parts: ClassVar[Mapping[str, str]] = {
        "projections.text.": "text",
        "projections.image.": "image",
        "transformer.": "user",
    }

    def __init__(self, inputs: Inputs, config: MoRecConfig) -> None:
        super().__init__(inputs, config)
        self.projections = nn.ModuleDict(
            {modality: FeatureProjection(inputs, modality, config.dim) for modality in self.modalities}
        )
        self.transformer = CausalTransformer(config.dim, config.length, config.layers, config.heads, config.dropout)

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Average the vectors of all modalities, [C, D]."""
        return torch.stack(list(self.modal_vectors(features).values())).mean(dim=0)

    def modal_vectors(self, features: Features) -> dict[str, Tensor]:
        """Project the features of each modality, [C, D] each; their mean is the item's vector."""
        return {modality: self.projections[modality](features[modality]) for modality in self.modalities}

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to items before and to the item itself, [B, L, D]."""
        states_BLD: Tensor = self.transformer(items_BLD, mask_BL)
        return states_BLD
