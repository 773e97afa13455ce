"""LightGCN: embeddings smoothed over the graph of interactions.

Shape suffixes: B batch rows, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ptmrec_dist.config.recommenders import LightGCNConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Recommender, Tables
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import bpr_term, l2_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features, look_up, row_gaps


class LightGCN(Recommender):
    r"""LightGCN.

    He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020,
    https://arxiv.org/abs/2002.02126.

    .. math::
        E^{(l+1)} = D^{-1/2} A D^{-1/2} E^{(l)}, \quad E = \frac{1}{L+1} \sum_{l=0}^{L} E^{(l)}, \quad
        \hat y_{ui} = e_u \cdot e_i

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) +
        \frac{\lambda}{2} (|e_u^{(0)}|^2 + |e_p^{(0)}|^2 + |e_n^{(0)}|^2)

    Users [U, dim] and items [I, dim]. A has no self-loops and contains each training pair once; nodes without
    training interactions keep 1 / (L + 1) of an untrained embedding.

    Common implementations add the norms of the batch's tables without squaring them (see BPR) and 1e-7 to degrees against
    division by zero. Here the norms are squared, as in the paper, and nodes without edges get zeros.

    Args:
        inputs: Numbers of users and items, and the training interactions.
        config: Hyper-parameters, see `LightGCNConfig`.
    """

    multimodal: ClassVar[bool] = False
    starts_from_factors: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: LightGCNConfig) -> None:
        super().__init__(inputs)
        self.layers = config.layers
        self.reg_weight = config.reg_weight
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.graph = InteractionGraph(
            torch.tensor(inputs.train.users), torch.tensor(inputs.train.items), inputs.num_users, inputs.num_items
        )

    def tables(self, features: Features) -> Tables:
        """Propagate the embeddings through all layers but the last, `users` [U, dim] and `items` [I, dim].

        The last layer is computed where vectors are asked for: a batch has few of all users. Features are not read.
        """
        own = self.user_embeddings.weight, self.item_embeddings.weight
        users_UD, items_ID = self.graph.propagate(*own, self.layers - 1)
        return {"users": users_UD, "items": items_ID}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute e_u, [B, dim]."""
        return self.graph.last_users(queries.users, self.user_embeddings.weight, tables["items"], self.layers)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute e_i, [C, dim]; features are not read."""
        return self.graph.last_items(chosen, tables["users"], self.item_embeddings.weight, self.layers)

    @torch.no_grad()
    def start_from(self, users_UD: Tensor, items_ID: Tensor) -> None:
        """Set the embeddings of layer 0 so that propagation gives these vectors."""
        users_UD, items_ID = self.graph.sources(users_UD, items_ID, self.layers)
        self.user_embeddings.weight.copy_(users_UD)
        self.item_embeddings.weight.copy_(items_ID)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` (on propagated embeddings) and `l2` (on embeddings of layer 0), [B] each."""
        gaps_BD = row_gaps(self.items({}, tables), batch.positives, batch.negatives)
        items_BD = look_up(self.item_embeddings.weight, batch.positives, batch.negatives)
        penalty_B = l2_term(self.user_embeddings(batch.users), *items_BD)
        return {"bpr": bpr_term(self.users(batch.queries, tables), gaps_BD), "l2": self.reg_weight * penalty_B}
