"""VBPR: matrix factorisation, and a second one whose item vectors come from images and texts.

Shape suffixes: B batch rows, C chosen items, D width of the embeddings, X width of a modality's features.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.recommenders import VBPRConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.layers import embedding_table, modal_maps
from ptmrec_dist.recommenders.losses import bpr_term, l2_term, penalty_weight
from ptmrec_dist.recommenders.rows import FeatureRows, Features, row_gaps, rows_of


class VBPR(FittedRecommender):
    r"""VBPR, for any modalities.

    He and McAuley, VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback, AAAI 2016,
    https://arxiv.org/abs/1510.01784.

    .. math::
        \hat y_{ui} = [\gamma_u ; \theta_u] \cdot [\gamma_i ; \sum_m W_m x_{im}], \qquad
        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) +
        \frac{\lambda}{2} (|\gamma_u|^2 + |\theta_u|^2 + |\gamma_p|^2 + |\gamma_n|^2 +
        |\sum_m W_m (x_{pm} - x_{nm})|^2)

    Users [U, 2 dim], items [I, 2 dim]: the first half comes from IDs, the second from features. The sum of one map per
    modality is the same function as one map of the concatenated features, and provides the Linear of eq. 12 for each
    modality.

    A cold item has no gamma_i: it is scored by maps fitted to both halves (see `FittedRecommender`). On MovieLens they scored
    new films better than W, on the generated data of `ptmrec demo` worse (`docs/results.md`). A likely reason, not tested: W
    fits the training interactions also along directions of the features in which items hardly differ.

    The ID half alone, which is what features left unexplained, taught stage 2 less well on MovieLens than whole scores
    (`docs/notes.md`).

    Features are used unchanged, normalised or not. The paper's biases (an item's own
    and one linear in its features) are left out, as in common implementations, so that a score is a dot product. Those
    regularise the projected features of both items, the paper W itself. Here the projected difference of the two is
    regularised, which is all that the loss depends on. With W free, users shrink, W grows, and the second half overfits.

    Args:
        inputs: Numbers of users and items, the training interactions, and features whose widths set those of the maps.
        config: Hyper-parameters, see `VBPRConfig`.
    """

    multimodal: ClassVar[bool] = True
    propagates_features: ClassVar[bool] = False
    cuts_tables: ClassVar[bool] = True
    starts_from_factors: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: VBPRConfig) -> None:
        super().__init__(inputs, 2 * config.dim)
        self.dim = config.dim
        self.reg_weight = penalty_weight(config.reg_weight, inputs.train)
        self.user_embeddings = embedding_table(inputs.num_users, 2 * config.dim, inputs.owners)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim, inputs.owners)
        self.maps = modal_maps(inputs.features, config.dim)

    @property
    def id_columns(self) -> int:
        """The first half."""
        return self.dim

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Return both halves of users, [B, 2 dim], the ID half first."""
        users_BD: Tensor = self.user_embeddings(queries.users)
        return users_BD

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Return both halves of items, [C, 2 dim]."""
        return torch.cat([rows_of(self.item_embeddings.weight, chosen), self._project(features)], dim=1)

    @torch.no_grad()
    def start_from(self, users_UD: Tensor, items_ID: Tensor) -> None:
        """Set the ID halves."""
        self.user_embeddings.weight[:, : self.dim] = users_UD
        self.item_embeddings.weight.copy_(items_ID)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2`, [B] each, from the batch's rows."""
        users_BD = self.user_embeddings(batch.users)
        positives_BD, negatives_BD = self.item_embeddings(torch.stack([batch.positives, batch.negatives]))
        # W is linear: projecting the difference of two items is half the work of projecting both.
        projected_BD = self._project(
            {modality: row_gaps(features[modality], batch.positives, batch.negatives) for modality in self.modalities}
        )
        gaps_BD = torch.cat([positives_BD - negatives_BD, projected_BD], dim=1)
        return {
            "bpr": bpr_term(users_BD, gaps_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD, projected_BD),
        }

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the ID halves, users [B, dim] and items [C, dim]."""
        return self.users(queries, tables)[:, : self.dim], rows_of(self.item_embeddings.weight, chosen)

    def _project(self, rows: Features) -> Tensor:
        projected = [
            F.linear(rows[modality], self.maps[modality].get_parameter("weight")) for modality in self.modalities
        ]
        return torch.stack(projected).sum(dim=0)
