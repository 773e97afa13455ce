"""PMMRec: tokens of images and texts, fused, in place of IDs (Li et al., ICDE 2024, arXiv 2312.09602).

    t_i, v_i, e_i = Fuse(tokens of text and image)   (eq. 1 to 3),
    h_1 .. h_L = Transformer(e_1 + p_1, .., e_L + p_L)   (eq. 4),   score(u, i) = h_L . e_i

With `ptmrec joint` it reads the encoder's tokens, and the encoder learns along, as in the paper; in stage 1, where features
are frozen, an image or a text is one token, projected by a network as MoRec's are (`projection.py`). Stage 1 and `joint` add
the losses of eq. 6 to 11 to that of the next item (`training/objectives/pretraining.py`), which the hyper-parameters choose.
With one modality its vector is what is read and scored, without a fusion, as in the paper's transfer of one modality.

Departures: a modality is represented by the mean of its tokens by default, since not every encoder has a class token; the user
encoder is that of SASRec here (`transformer.py`); fused vectors start with length 1 (`fusion.py`).

Shape suffixes: C chosen items, B histories, L items, D width, K classes of noise.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.layers import linear_map
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import ITEMS
from ptmrec_dist.recommenders.sequential.fused import FusedRecommender
from ptmrec_dist.recommenders.sequential.fusion import FUSED, MergeAttention, Tokens
from ptmrec_dist.recommenders.sequential.projection import FeatureProjection
from ptmrec_dist.recommenders.sequential.transformer import CausalTransformer

_NOISES = 3  # none, shuffled, replaced


class PMMRec(FusedRecommender):
    """A causal transformer over fused images and texts.

    Args:
        inputs: What it is built from; of the features only their widths count, unless the hyper-parameters give those of the
            encoder's tokens.
        config: Hyper-parameters.
    """

    parts: ClassVar[Mapping[str, str]] = {
        "fusion.projections.text.": "text",
        "fusion.projections.image.": "image",
        "fusion.class_D": "fusion",
        "fusion.block.": "fusion",
        "transformer.": "user",
    }

    def __init__(self, inputs: Inputs, config: PMMRecConfig) -> None:
        super().__init__(inputs, config)
        self.config = config
        given = {"image": config.image_width, "text": config.text_width}
        self.fuses_tokens = any(given.values())
        self.modalities = tuple(modality for modality in self.modalities if modality != FUSED)
        projections = {
            modality: linear_map(given[modality] or inputs.features[modality].shape[1], config.dim)
            if self.fuses_tokens
            else FeatureProjection(inputs, modality, config.dim)
            for modality in self.modalities
        }
        self.fusion = MergeAttention(
            projections, config.dim, config.fusion_heads, config.dropout, config.pooling == "first"
        )
        self.transformer = CausalTransformer(config.dim, config.length, config.layers, config.heads, config.dropout)
        self.noise_classifier = nn.Linear(config.dim, _NOISES) if config.nid != "none" else None

    def fuse(self, tokens: Tokens) -> dict[str, Tensor]:
        """Compute what is stored of items, and gathered over ranks, from their tokens.

        Args:
            tokens: Tokens of the modalities.

        Returns:
            Vectors of each modality alone, and `FUSED`, [C, D] each.
        """
        found: dict[str, Tensor] = self.fusion(tokens)
        return found

    def views(self, features: Features, chosen: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the vectors that are read and scored, and those of each modality alone, [C, D] each.

        Args:
            features: Features of these items, [C, d_m], each read as one token; or what `fuse` returned.
            chosen: Not read.

        Returns:
            `ITEMS` and each modality to [C, D].
        """
        if FUSED not in features:
            features = self.fuse({name: _one_token(features[name]) for name in self.modalities})
        return {ITEMS: features[FUSED]} | {name: features[name] for name in self.modalities}

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Fuse images and texts, [C, D]."""
        return self.views(features)[ITEMS]

    def modal_vectors(self, features: Features) -> dict[str, Tensor]:
        """Compute the vectors of each modality alone, which are scored where a transfer reads one, [C, D] each."""
        return {name: view for name, view in self.views(features).items() if name != ITEMS}

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to items before and to the item itself, [B, L, D]."""
        states_BLD: Tensor = self.transformer(items_BLD, mask_BL)
        return states_BLD

    def classify_noise(self, states: Tensor) -> Tensor:
        """Apply the classifier; see `FusedRecommender`."""
        assert self.noise_classifier is not None  # the objective asks where the hyper-parameters do
        outputs: Tensor = self.noise_classifier(states)
        return outputs


def _one_token(rows_CX: Tensor) -> tuple[Tensor, Tensor]:
    return rows_CX[:, None], torch.ones(len(rows_CX), 1, dtype=torch.bool, device=rows_CX.device)
