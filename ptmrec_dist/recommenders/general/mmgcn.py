"""MMGCN: a graph convolution over users and items for each modality.

Shape suffixes: B batch rows, C chosen items, N nodes of a side, users or items, O those of the other side, M modalities,
U users, I items, P width of the inputs of a layer, D width of its outputs, X the inputs of all modalities side by side.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config.recommenders import MMGCNConfig
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.graphs import neighbour_means
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import bpr_term, l2_term
from ptmrec_dist.recommenders.principal import principal_maps
from ptmrec_dist.recommenders.rows import FeatureRows, Features, look_up, row_gaps, rows_of
from ptmrec_dist.recommenders.sparse import SparseMatrix
from ptmrec_dist.recommenders.unit_rows import unit_rows

_SLOPE = 0.01  # of the leaky rectifier, as published


class MMGCN(FittedRecommender):
    r"""MMGCN, for one modality or both.

    Wei et al., MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of Micro-video, MM 2019,
    https://doi.org/10.1145/3343031.3351034.

    .. math::
        X_m^{(0)} = \mathrm{rows\ of\ unit\ length}\, [Q_m ; x_m W_m + b_m], \quad A = D^{-1} \mathrm{Adj}

        H = \phi(A X_m^{(l)} K_m), \quad \hat X = \phi(X_m^{(l)} L_m + b) + E, \quad
        X_m^{(l+1)} = \phi([H ; \hat X] G_m + c)

        f = \frac{1}{|M|} \sum_m X_m^{(L)}, \quad \hat y_{ui} = f_u \cdot f_i

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \lambda \left(\frac{|e_u|^2}{d} + \frac{|e_p|^2 + |e_n|^2}{2 d} +
        \frac{1}{|M| w} \sum_m |q_{um}|^2\right)

    Users [U, d] and items [I, d], d is `dim`. Users' preferences Q_m [U, w] and projected features [I, w] are the inputs of
    modality m, w is `input_dim`; IDs E [U + I, d] enter every layer and are the same for all modalities. phi is the leaky
    rectifier. Every layer has weights of its own: K [p, p], L [p, d], G [p + d, d], with p = w in the first and d in the
    others. A node without edges has H = 0.

    The objective compares no features with users: `FittedRecommender` scores cold items. `collaborative` is the same forward
    pass for items without content, whose features are zero.

    Where common implementations differ: their E and Q are never trained or saved, although the paper trains them
    (`frozen_ids` keeps them as they were initialised), so that their lambda has no effect; they score with the vectors of the
    last batch's forward pass (here those of the current weights), always have three layers, map only images to width w and
    keep texts as they are, penalise the preferences of all users for images (here those of the batch's users for all
    modalities), and initialise with normal instead of uniform numbers of the same variance.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `MMGCNConfig`.
    """

    multimodal: ClassVar[bool] = True
    propagates_features: ClassVar[bool] = True
    user_rows: ClassVar[tuple[str, ...]] = ("user_embeddings.weight", "preferences.weight")

    def __init__(self, inputs: Inputs, config: MMGCNConfig) -> None:
        super().__init__(inputs, config.dim)
        self.reg_weight, count = config.reg_weight, len(self.modalities)
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.preferences = embedding_table(inputs.num_users, count * config.input_dim)
        for table in (self.user_embeddings, self.item_embeddings, self.preferences):
            table.requires_grad_(not config.frozen_ids)
        self.maps = principal_maps(inputs, config.input_dim, config.rank, bias=True)
        widths = [config.input_dim] + [config.dim] * (config.layers - 1)
        self.convolutions = nn.ModuleList(_Convolution(count, width, config.dim) for width in widths)
        users_E, items_E = torch.tensor(inputs.train.users), torch.tensor(inputs.train.items)
        self.to_users = neighbour_means(users_E, items_E, (inputs.num_users, inputs.num_items))
        self.to_items = neighbour_means(items_E, users_E, (inputs.num_items, inputs.num_users))

    def tables(self, features: Features) -> Tables:
        """Compute what the last layer reads: nodes, `users` and `items`, and means over their neighbours, `near_...`, [N, X].

        The last layer is computed where users or items are asked for: a batch has few of all.
        """
        return self._convolved({modality: self.maps[modality](features[modality]) for modality in self.modalities})

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute the last layer of users, [B, D]."""
        return self._last_layer("users", queries.users, tables, self.user_embeddings.weight)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute the last layer of items, [C, D]; features enter through the tables alone."""
        return self._last_layer("items", chosen, tables, self.item_embeddings.weight)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2` (on IDs and preferences), [B] each."""
        # Each node of the batch once, however often it occurs.
        users_Q, users_B = batch.users.unique(return_inverse=True)
        items_Q, items_2B = torch.stack([batch.positives, batch.negatives]).unique(return_inverse=True)
        users_BD = F.embedding(users_B, self.users(Queries(users_Q), tables))
        gaps_BD = row_gaps(self.items({}, tables, items_Q), *items_2B)
        ids_BD = self.user_embeddings(batch.users)
        items_BD = look_up(self.item_embeddings.weight, batch.positives, batch.negatives)
        ids_B = l2_term(ids_BD, ids_BD, *items_BD) / ids_BD.shape[1]
        penalty_B = ids_B + self.preferences(batch.users).square().mean(dim=1)
        return {"bpr": bpr_term(users_BD, gaps_BD), "l2": self.reg_weight * penalty_B}

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return users [B, dim] and items [C, dim] as they would be if all features were zero; convolves all nodes."""
        num_items = self.item_embeddings.num_embeddings
        empty = {
            modality: self.maps[modality].get_parameter("bias").expand(num_items, -1) for modality in self.modalities
        }
        without = self._convolved(empty)
        return self.users(queries, without), self.items({}, without, chosen)

    def _convolved(self, projected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all layers but the last, of users' preferences and items' projected features, [I, P] by modality."""
        preferences_UMP = self.preferences.weight.unflatten(1, (len(self.modalities), -1))
        users_UX = unit_rows(preferences_UMP).flatten(1)
        items_IX = torch.cat([unit_rows(projected[modality]) for modality in self.modalities], dim=1)
        for convolution in self.convolutions[:-1]:
            users_UX, items_IX = (
                convolution(self.to_users, items_IX, users_UX, self.user_embeddings.weight),
                convolution(self.to_items, users_UX, items_IX, self.item_embeddings.weight),
            )
        near = {"near_users": self.to_users(items_IX), "near_items": self.to_items(users_UX)}
        return {"users": users_UX, "items": items_IX, **near}

    def _last_layer(self, side: str, chosen: Tensor | None, tables: Tables, ids_ND: Tensor) -> Tensor:
        """Compute the last layer of some nodes, and its mean over modalities, [C, D]."""
        own_CX, means_CX, ids_CD = (rows_of(table, chosen) for table in (tables[side], tables[f"near_{side}"], ids_ND))
        outputs_CX = cast(_Convolution, self.convolutions[-1]).from_means(own_CX, means_CX, ids_CD)
        mean_CD: Tensor = outputs_CX.unflatten(1, (len(self.modalities), -1)).mean(dim=1)
        return mean_CD


class _Convolution(nn.Module):
    """A layer of all modalities: sparse products of their inputs side by side, and batched products with weights.

    Args:
        modalities: Number of modalities M.
        inputs: Width of the inputs P.
        outputs: Width of the outputs and of IDs D.
    """

    def __init__(self, modalities: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.neighbour_weights = _stacked(modalities, inputs, inputs)
        self.own_weights = _stacked(modalities, inputs, outputs)
        self.own_bias = nn.Parameter(torch.zeros(modalities, 1, outputs))
        self.fusion_weights = _stacked(modalities, inputs + outputs, outputs)
        self.fusion_bias = nn.Parameter(torch.zeros(modalities, 1, outputs))

    def forward(self, means: SparseMatrix, others_OX: Tensor, own_NX: Tensor, ids_ND: Tensor) -> Tensor:
        """Compute the outputs of users or of items, [N, M D], from their inputs and those of the other side."""
        if len(own_NX) <= len(others_OX):
            return self.from_means(own_NX, means(others_OX), ids_ND)
        # A (X K) instead of (A X) K: weights are multiplied with the side that has fewer nodes.
        weighted_OX = _joined(torch.bmm(self._split(others_OX), self.neighbour_weights))
        return self._fused(own_NX, self._split(_rectified(means(weighted_OX))), ids_ND)

    def from_means(self, own_NX: Tensor, means_NX: Tensor, ids_ND: Tensor) -> Tensor:
        """Compute the outputs of some nodes, [N, M D], from their inputs and the means over their neighbours."""
        neighbours_MNP = _rectified(torch.bmm(self._split(means_NX), self.neighbour_weights))
        return self._fused(own_NX, neighbours_MNP, ids_ND)

    def _fused(self, own_NX: Tensor, neighbours_MNP: Tensor, ids_ND: Tensor) -> Tensor:
        own_MND = _rectified(torch.baddbmm(self.own_bias, self._split(own_NX), self.own_weights)) + ids_ND
        # [H ; X] G without concatenating H and X.
        from_neighbours, from_own = self.fusion_weights.split([neighbours_MNP.shape[2], own_MND.shape[2]], dim=1)
        fused_MND = torch.baddbmm(self.fusion_bias, neighbours_MNP, from_neighbours)
        return _joined(_rectified(fused_MND.baddbmm_(own_MND, from_own)))

    def _split(self, table_NX: Tensor) -> Tensor:
        """Each modality on its own, [M, N, P]."""
        table_MNP: Tensor = table_NX.unflatten(1, (len(self.own_weights), -1)).transpose(0, 1)
        return table_MNP


def _joined(table_MNP: Tensor) -> Tensor:
    """The modalities side by side, [N, M P]."""
    return table_MNP.transpose(0, 1).flatten(1)


def _rectified(sums: Tensor) -> Tensor:
    """Apply the leaky rectifier in place: its gradient follows from its values, so that no second table is written."""
    return F.leaky_relu(sums, _SLOPE, inplace=True)


def _stacked(modalities: int, inputs: int, outputs: int) -> nn.Parameter:
    """A weight matrix for each modality with Xavier's uniform initialisation, [M, inputs, outputs]."""
    weights = nn.Parameter(torch.empty(modalities, inputs, outputs))
    for weight in weights:
        nn.init.xavier_uniform_(weight)
    return weights
