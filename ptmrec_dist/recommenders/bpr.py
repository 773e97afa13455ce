"""BPR: matrix factorisation trained on pairs of a positive and a negative item.

Shape suffixes: B batch rows, U users, I items, D width of the embeddings.
"""

from typing import ClassVar

from torch import Tensor

from ptmrec_dist.config.recommenders import BPRConfig
from ptmrec_dist.recommenders.base import (
    FeatureRows,
    Features,
    Inputs,
    Recommender,
    bpr_term,
    embedding_table,
    l2_term,
    look_up,
)


class BPR(Recommender):
    r"""Matrix factorisation with the BPR objective.

    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009,
    https://arxiv.org/abs/1205.2618.

    .. math::
        \hat y_{ui} = e_u \cdot e_i, \qquad
        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \frac{\lambda}{2} (|e_u|^2 + |e_p|^2 + |e_n|^2)

    Users [U, dim] and items [I, dim]; the loss is averaged over the rows (u, p, n) of a batch.

    Common implementations add the norms of the batch's tables without squaring them, so that their values of lambda are
    not comparable. Here the norms are squared, as in the paper. Neither has biases.

    Args:
        inputs: Numbers of users and items.
        config: Hyper-parameters, see `BPRConfig`.
    """

    propagates: ClassVar[bool] = False
    multimodal: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: BPRConfig) -> None:
        super().__init__(inputs)
        self.reg_weight = config.reg_weight
        self.users = embedding_table(inputs.num_users, config.dim)
        self.items = embedding_table(inputs.num_items, config.dim)

    def representations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the embeddings, users [U, dim] and items [I, dim]."""
        return self.collaborative()

    def loss(
        self,
        users_B: Tensor,
        positives_B: Tensor,
        negatives_B: Tensor,
        representations: tuple[Tensor, Tensor] | None,
        features: FeatureRows,
    ) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2`, [B] each; reads neither representations nor features."""
        users_BD = self.users(users_B)
        positives_BD, negatives_BD = look_up(self.items.weight, positives_B, negatives_B)
        return {
            "bpr": bpr_term(users_BD, positives_BD - negatives_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD),
        }

    def collaborative(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings, users [U, dim] and items [I, dim]."""
        return self.users.weight, self.items.weight
