"""What sequence recommenders that read features have in common: the scores of cold items.

Shape suffixes: B histories, L items of a history, C chosen items, I items, D width of the vectors, E width of the ID vectors.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.sequences import CosineSequenceConfig, SequenceConfig
from ptmrec_dist.recommenders.base import Inputs, Tables
from ptmrec_dist.recommenders.fitted import FittedMaps
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.rows import Features, rows_of
from ptmrec_dist.recommenders.sequences import ITEMS, SequenceRecommender
from ptmrec_dist.recommenders.sequential.transformer import CausalTransformer


class ContentRecommender(SequenceRecommender):
    """A recommender whose vectors of items come from features alone: cold items are scored as all others are."""

    multimodal: ClassVar[bool] = True

    def cold_items(self, features: Features) -> Tensor:
        """Compute what is scored of items from their features, as for all items, [C, N]."""
        return self.candidates(self.item_vectors(features))


class CosineRecommender(ContentRecommender):
    """A causal transformer over vectors that are scored by their cosine with the state.

    score(u, i) = h_L . e_i / (|h_L| |e_i| temperature)

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    def __init__(self, inputs: Inputs, config: CosineSequenceConfig) -> None:
        super().__init__(inputs, config)
        self.temperature = config.temperature
        self.transformer = CausalTransformer(
            config.dim, config.length, config.layers, config.heads, config.dropout, config.inner
        )

    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend to items before and to the item itself, [B, L, D]; of length 1 / temperature."""
        return F.normalize(self.transformer(items_BLD, mask_BL), dim=2) / self.temperature

    def candidates(self, vectors_CD: Tensor) -> Tensor:
        """Scale vectors to length 1, [C, D]."""
        return F.normalize(vectors_CD, dim=1)


class MixedRecommender(SequenceRecommender):
    """A recommender whose vectors of items come from IDs and features.

    The ID vector of a cold item, which is untrained, is predicted by the mean over modalities of P_m x_m, for its score and in
    histories: ridge regression from features to the ID vectors of items with training interactions, which `fit_cold_map` does.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    multimodal: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: SequenceConfig) -> None:
        super().__init__(inputs, config)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.id_maps = FittedMaps(inputs, config.dim)

    @abstractmethod
    def mixed(self, ids_CE: Tensor, features: Features) -> Tensor:
        """Compute the vectors of items from ID vectors and features.

        Args:
            ids_CE: ID vectors, [C, E].
            features: Features of these items in their order, [C, d_m] by modality.

        Returns:
            [C, D].
        """

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Compute vectors from IDs and features, [C, D]."""
        return self.mixed(rows_of(self.item_embeddings.weight, chosen), features)

    def fit_cold_map(self, features: Features) -> None:
        """Fit each P_m separately to the ID vectors of items with training interactions."""
        self.id_maps.fit(features, self.item_embeddings.weight)

    def tables(self, features: Features) -> Tables:
        """Compute the vectors of all items, [I, D]; ID vectors of those without training interactions are predicted."""
        warm_items = self.id_maps.warm_items
        known = self.item_embeddings.weight[warm_items]
        return {ITEMS: self.mixed(self._predicted_ids(features).index_copy(0, warm_items, known), features)}

    def cold_items(self, features: Features) -> Tensor:
        """Compute what is scored of items whose ID vectors are predicted from their features, [C, N]."""
        return self.candidates(self.mixed(self._predicted_ids(features), features))

    def _predicted_ids(self, features: Features) -> Tensor:
        """ID vectors that features predict, [C, E]."""
        predicted = [
            F.linear(features[modality], self.id_maps[modality].get_parameter("weight")) for modality in self.modalities
        ]
        return torch.stack(predicted).mean(dim=0)


def joined(features: Features, modalities: tuple[str, ...]) -> Tensor:
    """Put the features of all modalities side by side.

    Args:
        features: [C, d_m] by modality.
        modalities: Their order.

    Returns:
        [C, sum of d_m].
    """
    return torch.cat([features[modality] for modality in modalities], dim=1)
