"""FDSA: self-attention over items beside self-attention over their features (Zhang et al., IJCAI 2019).

https://www.ijcai.org/proceedings/2019/600

    f_i = sum_m a_im f_im,   f_im = x_im W_m + b_m,   a_i = softmax over modalities of w . ReLU(f_im W_a + b_a)
    o = LN(W [Transformer_id(e_1 + p_1, ..) ; Transformer_feature(f_1 + p_1, ..)] + b),   score(u, i) = o_L . e_i

Both transformers read the same positions, and the same normalisation of the sum. The vectors that are read are [e_i ; f_i], [C,
2 dim], those that are scored e_i alone, [C, dim]. The paper's loss is the cross-entropy over all items (`--loss full`).

A cold item has no trained e_i: it is scored by the one that its features predict (`MixedRecommender`), which the paper does not
do.

Departures: fields of features are the modalities, whose features are dense, instead of categories and brands; attention over
fields is that of RecBole, as are the sizes. RecBole normalises o by the layer that normalises the inputs; here it has its own.

Shape suffixes: B histories, L items of a history, C chosen items, M modalities, D width of the vectors of IDs.
"""

import torch
from torch import Tensor, nn

from ptmrec_dist.config.sequences import FDSAConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.layers import linear_map, modal_maps
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequential.content import MixedRecommender
from ptmrec_dist.recommenders.sequential.transformer import CausalBlocks, CausalTransformer


class FDSA(MixedRecommender):
    """Two causal transformers, over a table of item embeddings and over features.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: FDSAConfig) -> None:
        super().__init__(inputs, config)
        self.dim = config.dim
        blocks = (config.layers, config.heads, config.dropout, config.inner)
        self.id_transformer = CausalTransformer(config.dim, config.length, *blocks)
        self.feature_blocks = CausalBlocks(config.dim, *blocks)
        self.maps = modal_maps(inputs.features, config.dim, bias=True)
        self.field_attention = nn.Sequential(
            linear_map(config.dim, config.dim), nn.ReLU(), linear_map(config.dim, 1, bias=False)
        )
        self.merge = linear_map(2 * config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def mixed(self, ids_CE: Tensor, features: Features) -> Tensor:
        """Put ID vectors and projected features side by side, [C, 2D]."""
        fields_CMD = torch.stack([self.maps[modality](features[modality]) for modality in self.modalities], dim=1)
        weights_CM1 = self.field_attention(fields_CMD).softmax(dim=1)
        return torch.cat([ids_CE, (weights_CM1 * fields_CMD).sum(dim=1)], dim=1)

    def candidates(self, vectors_CD: Tensor) -> Tensor:
        """Return the ID vectors, [C, D]."""
        return vectors_CD[:, : self.dim]

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to IDs and to features before and at each item, [B, L, D]."""
        ids_BLD, features_BLD = items_BLD.split(self.dim, dim=2)
        from_ids_BLD = self.id_transformer(ids_BLD, mask_BL)
        from_features_BLD = self.feature_blocks(self.id_transformer.positioned(features_BLD), mask_BL)
        merged_BLD = self.merge(torch.cat([from_ids_BLD, from_features_BLD], dim=2))
        states_BLD: Tensor = self.dropout(self.norm(merged_BLD))
        return states_BLD
