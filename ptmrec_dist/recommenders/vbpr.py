"""VBPR: matrix factorisation beside a second one whose item vectors come from images and texts.

Shape suffixes: B batch rows, C chosen items, U users, I items, D width of the embeddings.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmrec_dist.config.recommenders import VBPRConfig
from ptmrec_dist.recommenders.base import (
    FeatureRows,
    Features,
    Inputs,
    Recommender,
    bpr_term,
    embedding_table,
    l2_term,
    look_up,
    modal_maps,
    row_gaps,
)
from ptmrec_dist.recommenders.ridge import fit_maps


class VBPR(Recommender):
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

    In stage 2 a modality's projection (eq. 12) covers both halves, [P_m ; M W_m] with M modalities: P_m predicts from
    features what an item's ID half would be. It is zero until `fit_projections` fits it, by ridge regression to the ID
    halves of items with training interactions. A cold item, which has no gamma_i, is scored by the mean over its
    modalities, [gamma_u ; theta_u] . [mean_m P_m x_im ; sum_m W_m x_im]. The ID half alone is a poor teacher here: it is what
    features left unexplained, so use whole scores as the teacher.

    Features are used unchanged, normalised or not. The paper's biases (an item's own
    and one linear in its features) are left out, as in common implementations, so that a score is a dot product. Those
    regularise the projected features of both items, the paper W itself. Here the projected difference of the two is
    regularised, which is all that the loss depends on. With W free, users shrink, W grows, and the second half overfits.

    Args:
        inputs: Numbers of users and items, and features whose widths set those of the maps.
        config: Hyper-parameters, see `VBPRConfig`.
    """

    propagates: ClassVar[bool] = False
    multimodal: ClassVar[bool] = True
    propagates_features: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: VBPRConfig) -> None:
        super().__init__(inputs)
        self.dim = config.dim
        self.reg_weight = config.reg_weight
        self.users = embedding_table(inputs.num_users, 2 * config.dim)
        self.items = embedding_table(inputs.num_items, config.dim)
        self.maps = modal_maps(inputs.features, config.dim)
        self.id_maps = modal_maps(inputs.features, config.dim)
        for id_map in self.id_maps.parameters():
            nn.init.zeros_(id_map)
        self.warm_items: Tensor
        self.register_buffer("warm_items", torch.tensor(inputs.train.items).unique(), persistent=False)

    def representations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return users [U, 2 dim] and items [I, 2 dim], the ID half first."""
        return self.users.weight, self._item_vectors(self.items.weight, features)

    def batch_representations(self, items: Tensor, rows: Features) -> tuple[Tensor, Tensor]:
        """Return users [U, 2 dim] and the vectors of these items [C, 2 dim]."""
        return self.users.weight, self._item_vectors(self.items(items), rows)

    def loss(
        self,
        users_B: Tensor,
        positives_B: Tensor,
        negatives_B: Tensor,
        representations: tuple[Tensor, Tensor] | None,
        features: FeatureRows,
    ) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2`, [B] each, from the batch's rows; representations are not read."""
        users_BD = self.users(users_B)
        positives_BD, negatives_BD = look_up(self.items.weight, positives_B, negatives_B)
        # W is linear: projecting the difference of two items is half the work of projecting both.
        projected_BD = self._project(
            {modality: row_gaps(features[modality], positives_B, negatives_B) for modality in self.modalities}
        )
        gaps_BD = torch.cat([positives_BD - negatives_BD, projected_BD], dim=1)
        return {
            "bpr": bpr_term(users_BD, gaps_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD, projected_BD),
        }

    def collaborative(self) -> tuple[Tensor, Tensor]:
        """Return the ID halves, users [U, dim] and items [I, dim]."""
        return self.users.weight[:, : self.dim], self.items.weight

    def modal_users(self, features: Features) -> Tensor:
        """Return both halves of the users, [U, 2 dim]."""
        return self.users.weight

    def modal_projection(self, modality: str) -> Callable[[Tensor], Tensor]:
        """Return [P_m ; M W_m], [*, d_m] -> [*, 2 dim]."""

        def project(rows: Tensor) -> Tensor:
            return torch.cat([self.id_maps[modality](rows), len(self.modalities) * self.maps[modality](rows)], dim=-1)

        return project

    def fit_projections(self, features: Features) -> None:
        """Fit each P_m separately to the ID halves of items with training interactions."""
        fit_maps(self.id_maps, features, self.warm_items, self.items.weight[self.warm_items])

    def _item_vectors(self, ids_CD: Tensor, rows: Features) -> Tensor:
        return torch.cat([ids_CD, self._project({modality: rows[modality] for modality in self.modalities})], dim=1)

    def _project(self, rows: Features) -> Tensor:
        return torch.stack([self.maps[modality](table) for modality, table in rows.items()]).sum(dim=0)
