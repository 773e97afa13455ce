"""Recommenders whose users and items are rows of two tables, which are computed once for all queries.

Shape suffixes: B queries, C chosen items, U users, I items, D width of the vectors.
"""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.recommenders.base import Queries, Recommender, Tables
from ptmrec_dist.recommenders.rows import Features, rows_of


class TableRecommender(Recommender):
    """A recommender that looks up users and items; a subclass computes the tables, by propagation or otherwise."""

    @abstractmethod
    def tables(self, features: Features) -> Tables:
        """Compute the vectors of all users and items.

        Args:
            features: Tables of the modalities in use; ID-only recommenders ignore it.

        Returns:
            `users` [U, D] and `items` [I, D] for the current weights; a subclass may add others.
        """

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Look up users, [B, D]."""
        return F.embedding(queries.users, tables["users"])

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Look up items, [C, D]; features enter through the tables alone."""
        return rows_of(tables["items"], chosen)
