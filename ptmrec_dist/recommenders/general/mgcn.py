"""MGCN: image and text features purified by behaviour, propagated over graphs of similar items, fused by preference.

Shape suffixes: N nodes, M modalities, U users, I items, D width of a view.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmrec_dist.config.recommenders import MGCNConfig
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.general.multi_view import MultiViewRecommender


class MGCN(MultiViewRecommender):
    r"""MGCN, for images and texts.

    Yu et al., Multi-View Graph Convolutional Network for Multimedia Recommendation, MM 2023,
    https://arxiv.org/abs/2308.03588. `MultiViewRecommender` contains what it has in common with SMORE; specific to MGCN
    are the inputs of the views and their fusion:

    .. math::
        y_m = W_m x_m, \quad a_m = \mathrm{softmax}_m\, q \cdot \tanh(W_a V_m + b_a), \quad \bar V = \sum_m a_m V_m

        \mathrm{fuse} = \bar V + \frac{1}{|M|} \sum_m \sigma(P_m(C)) \odot (V_m - \bar V)

    Users [U, dim] and items [I, dim]. The maps W_m need no bias: the gate G_m that follows adds its own.

    Where common implementations differ: they divide the common part by |M| + 1 with the others, count an item as the first
    of its own k neighbours (here k others), let Adam train the feature tables although the graphs stay frozen (here the
    owner of the tables decides), divide norms by the configured batch size even if a batch is shorter, and lower the
    learning rate by 4 % every 50 epochs.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `MGCNConfig`.
    """

    views: ClassVar[tuple[str, ...]] = ("image", "text")

    def __init__(self, inputs: Inputs, config: MGCNConfig) -> None:
        super().__init__(inputs, config, knn=dict.fromkeys(self.views, config.knn))
        dim = config.dim
        self.attention = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def see(self, projected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the projected features unchanged."""
        return projected

    def fuse(self, views: Mapping[str, Tensor], preferences: Mapping[str, Tensor]) -> Tensor:
        """Add what modalities have in common, [N, D], and the rest weighted by the node's preferences."""
        views_MND = torch.stack(list(views.values()))
        common_ND = (torch.softmax(self.attention(views_MND), dim=0) * views_MND).sum(dim=0)
        own_MND = torch.stack(list(preferences.values())) * (views_MND - common_ND)
        return common_ND + own_MND.mean(dim=0)
