"""What the objectives of stage 1 have in common: a recommender on features as they are.

Legend: I items, d_m width of a modality's features.
"""

import torch
from torch import Tensor, nn

from ptmrec_dist.distributed import World
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.objectives.base import TrainsRecommender


class RecommenderObjective(TrainsRecommender):
    """A recommender and its features.

    Args:
        recommender: The recommender.
        features: Modality to table, float32 [I, d_m]; where the recommender's tables are cut over ranks, of this rank's items.
        train_features: Train the tables, too.
        world: This rank and its peers.
    """

    def __init__(self, recommender: Recommender, features: Features, train_features: bool, world: World) -> None:
        super().__init__()
        self.recommender, self.world = recommender, world
        self.trained_features = nn.ParameterDict(features if train_features else {})
        self.frozen_features = {} if train_features else dict(features)

    @property
    def features(self) -> dict[str, Tensor]:
        """Modality to table as it stands, float32 [I, d_m]."""
        return self.frozen_features | dict(self.trained_features.items())

    @features.setter
    def features(self, tables: dict[str, Tensor]) -> None:
        self.frozen_features = tables

    def rebuild(self, world: World) -> None:
        """Let the recommender recompute what follows weights and features once per epoch."""
        self.recommender.rebuild(self.features, world)

    def weights(self) -> dict[str, Tensor]:
        """Return what the run keeps: the recommender's state, and the feature tables where they are trained.

        Of tables of IDs that are cut over ranks, this rank's rows.
        """
        tables = {f"features.{modality}": table for modality, table in self.trained_features.items()}
        return self.recommender.state_dict() | tables

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load what `weights` returned.

        Args:
            weights: Name to tensor.
        """
        with torch.no_grad():
            for modality, table in self.trained_features.items():
                table.copy_(weights.pop(f"features.{modality}"))
        self.recommender.load_state_dict(weights)

    def parameter_counts(self) -> dict[str, int]:
        """Count parameters by where they lie; feature tables count as trainable only where they are trained.

        Returns:
            `ids` (ID tables), `rest` (maps, gates and all else), `feature_tables` (trained or not), and `trainable`, which is
            what an optimiser moves.
        """
        embeddings = [module for module in self.recommender.modules() if isinstance(module, nn.Embedding)]
        ids = sum(table.num_embeddings * table.embedding_dim for table in embeddings)
        elsewhere = ids - sum(table.weight.numel() for table in embeddings)  # rows that other ranks hold
        own = sum(parameter.numel() for parameter in self.recommender.parameters())
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        cut = self.recommender.cut_items
        tables = sum((cut.num_embeddings if cut else len(table)) * table.shape[1] for table in self.features.values())
        rest = own + elsewhere - ids
        return {"ids": ids, "rest": rest, "feature_tables": tables, "trainable": trainable + elsewhere}
