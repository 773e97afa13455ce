"""Stage 1: a recommender learns to rank items that a user took above others, on features of an encoder (PTMRec section 2.2).

Legend: B interactions of this rank, G interactions of the global batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ptmrec_dist.distributed import fetch_rows
from ptmrec_dist.recommenders.base import Batch
from ptmrec_dist.recommenders.rows import BatchRows, FeatureRows
from ptmrec_dist.training.objectives.recommender import RecommenderObjective


class RankingBatch(NamedTuple):
    """A step of stage 1."""

    own: Batch
    """This rank's rows, [B]."""
    rows: int
    """Rows G of the global batch."""

    def to(self, device: torch.device) -> "RankingBatch":
        """Return the batch itself: it was sampled on the device.

        Args:
            device: The device.

        Returns:
            The batch.
        """
        return self


class Ranking(RecommenderObjective):
    """A recommender and its features, as a function from interactions with negatives to the recommender's own loss."""

    def forward(self, batch: RankingBatch, step: int) -> dict[str, Tensor]:
        """Compute this rank's contribution to the mean loss of a global batch.

        Every term is a mean over the rows of all ranks: a rank returns W / G times the sum of its rows, so that the mean over
        the W ranks, as data parallel training takes it of gradients, is exact however unevenly rows are distributed.

        Collective: every rank must call this.

        Args:
            batch: This rank's rows.
            step: Not used.

        Returns:
            The recommender's terms, scalars.
        """
        tables = self.recommender.tables(self.features)
        terms = self.recommender.loss(batch.own, tables, self._features_of(batch.own))
        return {name: rows_B.sum() * (self.world.size / batch.rows) for name, rows_B in terms.items()}

    def _features_of(self, batch: Batch) -> FeatureRows:
        """Features as they are, or where items are cut over ranks those of the batch, fetched from the ranks that have them."""
        if self.recommender.cut_items is None:
            return self.features
        items_G = torch.cat([batch.positives, batch.negatives]).unique()
        counted_G = torch.ones_like(items_G, dtype=torch.bool)
        return {
            modality: BatchRows(items_G, counted_G, fetch_rows(table, items_G))
            for modality, table in self.features.items()
        }
