"""MMGCN: a graph convolution over users and items for each modality.

Shape suffixes: B batch rows, C chosen items, N users and items, M modalities, U users, I items, P width of the inputs of a
layer, D width of its outputs, X the inputs of all modalities side by side.
"""

from collections.abc import Mapping
from typing import ClassVar

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
from ptmrec_dist.recommenders.rows import FeatureRows, Features, look_up, row_gaps
from ptmrec_dist.recommenders.sparse import SparseMatrix
from ptmrec_dist.recommenders.tables import TableRecommender

_SLOPE = 0.01  # of the leaky rectifier, as published


class MMGCN(FittedRecommender, TableRecommender):
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
        self.graph = neighbour_means(
            torch.tensor(inputs.train.users), torch.tensor(inputs.train.items), inputs.num_users, inputs.num_items
        )

    def tables(self, features: Features) -> Tables:
        """Convolve preferences and features, `users` [U, dim] and `items` [I, dim]."""
        return self._convolved({modality: self.maps[modality](features[modality]) for modality in self.modalities})

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr` and `l2` (on IDs and preferences), [B] each."""
        gaps_BD = row_gaps(tables["items"], batch.positives, batch.negatives)
        users_BD = self.user_embeddings(batch.users)
        items_BD = look_up(self.item_embeddings.weight, batch.positives, batch.negatives)
        ids_B = l2_term(users_BD, users_BD, *items_BD) / users_BD.shape[1]
        penalty_B = ids_B + self.preferences(batch.users).square().mean(dim=1)
        return {
            "bpr": bpr_term(F.embedding(batch.users, tables["users"]), gaps_BD),
            "l2": self.reg_weight * penalty_B,
        }

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return users [B, dim] and items [C, dim] as they would be if all features were zero; convolves all nodes."""
        num_items = self.item_embeddings.num_embeddings
        empty = {
            modality: self.maps[modality].get_parameter("bias").expand(num_items, -1) for modality in self.modalities
        }
        without = self._convolved(empty)
        return self.users(queries, without), self.items({}, without, chosen)

    def _convolved(self, projected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convolve users' preferences and items' projected features, [I, P] by modality."""
        preferences_UMP = self.preferences.weight.unflatten(1, (len(self.modalities), -1))
        contents_IMP = torch.stack([projected[modality] for modality in self.modalities], dim=1)
        vectors_NX = F.normalize(torch.cat([preferences_UMP, contents_IMP]), dim=2).flatten(1)
        ids_ND = torch.cat([self.user_embeddings.weight, self.item_embeddings.weight])
        for convolution in self.convolutions:
            vectors_NX = convolution(self.graph, vectors_NX, ids_ND)
        mean_ND = vectors_NX.unflatten(1, (len(self.modalities), -1)).mean(dim=1)
        num_users = self.user_embeddings.num_embeddings
        return {"users": mean_ND[:num_users], "items": mean_ND[num_users:]}


class _Convolution(nn.Module):
    """A layer of all modalities: one sparse product of their inputs side by side, and batched products with weights.

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

    def forward(self, means: SparseMatrix, vectors_NX: Tensor, ids_ND: Tensor) -> Tensor:
        """Compute the outputs, [N, M D], from the inputs, [N, M P], both with the modalities side by side."""
        own_MNP, mean_MNP = (
            table_NX.unflatten(1, (len(self.own_weights), -1)).transpose(0, 1)
            for table_NX in (vectors_NX, means(vectors_NX))
        )
        neighbours_MNP = _rectified(torch.bmm(mean_MNP, self.neighbour_weights))
        own_MND = _rectified(torch.baddbmm(self.own_bias, own_MNP, self.own_weights)) + ids_ND
        # [H ; X] G without concatenating H and X.
        from_neighbours, from_own = self.fusion_weights.split([own_MNP.shape[2], own_MND.shape[2]], dim=1)
        fused_MND = torch.baddbmm(self.fusion_bias, neighbours_MNP, from_neighbours)
        fused_MND = _rectified(torch.baddbmm(fused_MND, own_MND, from_own))
        return fused_MND.transpose(0, 1).flatten(1)


def _rectified(sums: Tensor) -> Tensor:
    """Apply the leaky rectifier in place: its gradient follows from its values, so that no second table is written."""
    return F.leaky_relu(sums, _SLOPE, inplace=True)


def _stacked(modalities: int, inputs: int, outputs: int) -> nn.Parameter:
    """A weight matrix for each modality with Xavier's uniform initialisation, [M, inputs, outputs]."""
    weights = nn.Parameter(torch.empty(modalities, inputs, outputs))
    for weight in weights:
        nn.init.xavier_uniform_(weight)
    return weights
