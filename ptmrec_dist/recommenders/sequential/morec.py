"""MoRec: items from images and texts in place of IDs (Yuan et al., SIGIR 2023, arXiv 2303.13835).

    e_i = W [x_i^image ; x_i^text] + b,   h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L),   score(u, i) = h_L . e_i

The paper has one modality; both are PMMRec's comparison "MoRec++" (arXiv 2312.09602), of which only that it joins them is
known. With `ptmrec joint` the encoder learns along, as in the paper; stage 1 leaves it frozen. The loss is in-batch
cross-entropy instead of binary cross-entropy against one negative, which the authors recommend since. Departures: the map is
linear, without the GELU of the authors' code, so that each modality's part is the map of eq. 12 of PTMRec, and new items are
scored exactly as the others.

Shape suffixes: C chosen items, D width.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.content_sequences import MoRecConfig
from ptmrec_dist.recommenders.base import Inputs, LinearMap
from ptmrec_dist.recommenders.layers import modal_maps
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.recommenders.sequential.transformer import CausalTransformer


class MoRec(SequenceRecommender):
    """A causal transformer over projected features.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    multimodal: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, str]] = {"maps.text.": "text", "maps.image.": "image", "transformer.": "user"}

    def __init__(self, inputs: Inputs, config: MoRecConfig) -> None:
        super().__init__(inputs, config)
        self.maps = modal_maps(inputs.features, config.dim, bias=True)
        self.transformer = CausalTransformer(config.dim, config.length, config.layers, config.heads, config.dropout)

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Project the joined features, [C, D]: the mean over modalities of the maps of each."""
        return self.cold_items(features)

    def modal_vectors(self, features: Features) -> dict[str, Tensor]:
        """Project the features of each modality, [C, D] each; their mean is the item's vector."""
        return {name: F.linear(features[name], *own) for name, own in self.cold_map().items()}

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to items before and to the item itself, [B, L, D]."""
        states_BLD: Tensor = self.transformer(items_BLD, mask_BL)
        return states_BLD

    def cold_map(self) -> dict[str, LinearMap]:
        """Return the part of W and b of each modality, times the number of modalities."""
        return {
            modality: (linear.get_parameter("weight"), linear.get_parameter("bias"))
            for modality, linear in self.maps.items()
        }
