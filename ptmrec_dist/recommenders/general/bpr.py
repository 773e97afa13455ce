"""BPR: matrix factorisation trained on pairs of a positive and a negative item.

Shape suffixes: B batch rows, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ptmrec_dist.config.recommenders import BPRConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import bpr_term, l2_term, penalty_weight
from ptmrec_dist.recommenders.rows import FeatureRows, Features
from ptmrec_dist.recommenders.tables import TableRecommender


class BPR(TableRecommender):
    r"""Matrix factorisation with the BPR objective.

    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009,
    https://arxiv.org/abs/1205.2618.

    .. math::
        \hat y_{ui} = e_u \cdot e_i, \qquad
        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \frac{\lambda}{2} (|e_u|^2 + |e_p|^2 + |e_n|^2)

    Users [U, dim] and items [I, dim]; the loss is averaged over the rows (u, p, n) of a batch.

    Common implementations add the norms of the batch's tables without squaring them, so that their values of lambda are
    not comparable. Here the norms are squared, as in the paper. Neither has biases. By default lambda depends on the data
    (`penalty_weight`).

    Args:
        inputs: Numbers of users and items, and the training interactions.
        config: Hyper-parameters, see `BPRConfig`.
    """

    multimodal: ClassVar[bool] = False
    cuts_tables: ClassVar[bool] = True
    starts_from_factors: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: BPRConfig) -> None:
        super().__init__(inputs)
        self.reg_weight = penalty_weight(config.reg_weight, inputs.train)
        self.user_embeddings = embedding_table(inputs.num_users, config.dim, inputs.owners)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim, inputs.owners)

    def tables(self, features: Features) -> Tables:
        """Return the embeddings, `users` [U, dim] and `items` [I, dim], or this rank's rows of them; features are not read."""
        return {"users": self.user_embeddings.weight, "items": self.item_embeddings.weight}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Look up users, [B, dim]."""
        users_BD: Tensor = self.user_embeddings(queries.users)
        return users_BD

    @torch.no_grad()
    def start_from(self, users_UD: Tensor, items_ID: Tensor) -> None:
        """Set the embeddings."""
        self.user_embeddings.weight.copy_(users_UD)
        self.item_embeddings.weight.copy_(items_ID)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2`, [B] each; reads neither tables nor features."""
        users_BD = self.user_embeddings(batch.users)
        positives_BD, negatives_BD = self.item_embeddings(torch.stack([batch.positives, batch.negatives]))
        return {
            "bpr": bpr_term(users_BD, positives_BD - negatives_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD),
        }
