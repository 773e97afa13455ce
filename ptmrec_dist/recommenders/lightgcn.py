"""LightGCN: embeddings smoothed over the graph of interactions.

Shape suffixes: B batch rows, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.recommenders import LightGCNConfig
from ptmrec_dist.recommenders.base import (
    FeatureRows,
    Features,
    Inputs,
    Recommender,
    bpr_term,
    embedding_table,
    l2_term,
    look_up,
    row_gaps,
)
from ptmrec_dist.recommenders.graphs import InteractionGraph


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

    propagates: ClassVar[bool] = True
    multimodal: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: LightGCNConfig) -> None:
        super().__init__(inputs)
        self.layers = config.layers
        self.reg_weight = config.reg_weight
        self.users = embedding_table(inputs.num_users, config.dim)
        self.items = embedding_table(inputs.num_items, config.dim)
        self.graph = InteractionGraph(
            torch.tensor(inputs.train.users), torch.tensor(inputs.train.items), inputs.num_users, inputs.num_items
        )

    def representations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Propagate the embeddings, users [U, dim] and items [I, dim]; features are not read."""
        return self.collaborative()

    def loss(
        self,
        users_B: Tensor,
        positives_B: Tensor,
        negatives_B: Tensor,
        representations: tuple[Tensor, Tensor] | None,
        features: FeatureRows,
    ) -> dict[str, Tensor]:
        """Compute the terms `bpr` (on representations) and `l2` (on embeddings of layer 0), [B] each."""
        assert representations is not None
        users_UD, items_ID = representations
        users_BD = F.embedding(users_B, users_UD)
        gaps_BD = row_gaps(items_ID, positives_B, negatives_B)
        penalty_B = l2_term(self.users(users_B), *look_up(self.items.weight, positives_B, negatives_B))
        return {"bpr": bpr_term(users_BD, gaps_BD), "l2": self.reg_weight * penalty_B}

    def collaborative(self) -> tuple[Tensor, Tensor]:
        """Propagate the embeddings, users [U, dim] and items [I, dim]."""
        return self.graph.propagate(self.users.weight, self.items.weight, self.layers)
