"""Common base of MGCN and SMORE: several views of items in addition to that of IDs, and users' preferences among them.

Shape suffixes: B batch rows, N nodes, Q distinct nodes of a rank's batch, K distinct nodes of all ranks' batches, U users,
I items, D width of a view, V all views of contents side by side.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.config.recommenders import MultiViewConfig
from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.item_graphs import cosine_graph
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import bpr_term, info_nce, l2_term
from ptmrec_dist.recommenders.principal import principal_maps
from ptmrec_dist.recommenders.rows import FeatureRows, Features, rows_of

MODALITIES = ("image", "text")


class MultiViewRecommender(FittedRecommender):
    r"""A view of IDs and several views of contents, fused node by node.

    .. math::
        C = \mathrm{LightGCN}(A, E_U, E_I), \quad
        V_{v,I} = S_v (E_I \odot \sigma(G_v(y_v))), \quad V_{v,U} = R V_{v,I}, \quad
        f = C + \mathrm{fuse}(V, \sigma(P_v(C))), \quad \hat y_{ui} = f_u \cdot f_i

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \frac{\lambda}{2} (|f_u|^2 + |f_p|^2 + |f_n|^2) +
        \mu (\mathrm{NCE}(f_u - C_u, C) + \mathrm{NCE}(f_p - C_p, C))

    R is the user rows of D^-1/2 A D^-1/2, S_v a graph of similar items. The input of a view, y_v, and the fusion of views
    are specific to each model. The contrastive terms (`info_nce`) run over the users, and over the positive items, of the
    batches of all ranks, repetitions included.

    Nothing in this objective compares features with users: `FittedRecommender` scores cold items, with maps fitted to f.

    The maps W_m that y_v starts from read the `rank` principal directions of wider features (`principal_maps`).

    Items without training interactions have rows in S_v, but no columns: they read from similar items, and their
    untrained embeddings affect no other node.

    Args:
        inputs: Numbers of users and items, the training interactions, and features of images and texts.
        config: Hyper-parameters, see `MultiViewConfig`.
        knn: Modality to the neighbours of an item in its graph.
        map_bias: Whether the maps W_m have a bias.
    """

    multimodal: ClassVar[bool] = True
    required_modalities: ClassVar[tuple[str, ...]] = MODALITIES
    propagates_features: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]]
    """Names of the views of contents, in the order of their columns."""

    def __init__(
        self, inputs: Inputs, config: MultiViewConfig, *, knn: Mapping[str, int], map_bias: bool = False
    ) -> None:
        super().__init__(inputs, config.dim)
        self.layers, self.reg_weight, dim = config.layers, config.reg_weight, config.dim
        self.cl_weight, self.temperature, self.dropout = config.cl_weight, config.temperature, 0.0
        self.user_embeddings = embedding_table(inputs.num_users, dim)
        self.item_embeddings = embedding_table(inputs.num_items, dim)
        self.maps = principal_maps(inputs, dim, config.rank, bias=map_bias)
        self.gates = nn.ModuleDict({view: nn.Linear(dim, dim) for view in self.views})
        self.preferences = nn.ModuleDict({view: nn.Linear(dim, dim) for view in self.views})
        users_E, items_E = torch.tensor(inputs.train.users), torch.tensor(inputs.train.items)
        self.graph = InteractionGraph(users_E, items_E, inputs.num_users, inputs.num_items)
        self.item_graphs = nn.ModuleDict(
            {
                modality: cosine_graph(
                    inputs.features[modality], self.warm_items, neighbours, inputs.cache, inputs.world
                )
                for modality, neighbours in knn.items()
            }
        )
        self._kept: dict[str, Tensor] = {}

    @abstractmethod
    def see(self, projected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compute the input of each view, y_v.

        Args:
            projected: Modality to W_m x_m, [I, D].

        Returns:
            View to y_v, [I, D].
        """

    @abstractmethod
    def fuse(self, views: Mapping[str, Tensor], preferences: Mapping[str, Tensor]) -> Tensor:
        """Fuse the views of each of some nodes.

        Args:
            views: View to V_v, [N, D].
            preferences: View to sigmoid(P_v(C)), [N, D].

        Returns:
            The term added to C, [N, D].
        """

    def start_epoch(self, generator: Generator) -> None:
        """Sample the dropout masks once per epoch, so that ranks agree and an interrupted epoch can be resumed."""
        if not self.dropout:
            return
        width = len(self.views) * self.item_embeddings.embedding_dim

        def mask(rows: int) -> Tensor:
            uniform_NV = torch.rand(rows, width, generator=generator, device=generator.device)
            return ((uniform_NV >= self.dropout) / (1 - self.dropout)).to(self.item_embeddings.weight.device)

        self._kept = {
            "users": mask(self.user_embeddings.num_embeddings),
            "items": mask(self.item_embeddings.num_embeddings),
        }

    def tables(self, features: Features) -> Tables:
        """Compute what is fused: C, `users` [U, D] and `items` [I, D], and the other views of items, `views` [I, V].

        The other views of users are computed where users are asked for: a batch has few of all.
        """
        ids_I = self.item_embeddings.weight
        users_UD, items_ID = self.graph.propagate(self.user_embeddings.weight, ids_I, self.layers)
        seen = self.see({modality: self.maps[modality](features[modality]) for modality in self.modalities})
        items_IV = torch.cat(
            [self.item_graphs[view](ids_I * torch.sigmoid(self.gates[view](seen[view]))) for view in self.views], dim=1
        )
        return {"users": users_UD, "items": items_ID, "views": items_IV}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute f of users, [B, D]."""
        return self._of_users(queries.users, tables).vectors_ND

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute f of items, [C, D]; features enter through the tables alone."""
        return self._of_items(chosen, tables).vectors_ND

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the terms `bpr`, `l2`, `contrast_users` and `contrast_items`, [B] each.

        Collective: every rank must call this.
        """
        # Only nodes in the batch are fused, each once however often it occurs.
        users_N, users_B = batch.users.unique(return_inverse=True)
        items_N, items_2B = torch.cat([batch.positives, batch.negatives]).unique(return_inverse=True)
        users, items = self._of_users(users_N, tables), self._of_items(items_N, tables)
        users_BD = F.embedding(users_B, users.vectors_ND)
        positives_BD, negatives_BD = F.embedding(items_2B, items.vectors_ND).chunk(2)
        positives_B = items_2B.chunk(2)[0]
        return {
            "bpr": bpr_term(users_BD, positives_BD - negatives_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD),
            "contrast_users": self._contrast(users, users_B, users_N, tables["users"]),
            "contrast_items": self._contrast(items, positives_B, items_N, tables["items"]),
        }

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return C of users [B, D] and items [C, D]."""
        return F.embedding(queries.users, tables["users"]), rows_of(tables["items"], chosen)

    def _contrast(self, fused: "_Fused", rows_B: Tensor, nodes_N: Tensor, table_ND: Tensor) -> Tensor:
        """Compute mu NCE of the batch's rows, [B], once for each node: equal rows have equal queries and equal keys."""
        nodes_Q, inverse_B, counts_Q = rows_B.unique(return_inverse=True, return_counts=True)
        queries_QD, own_QD = (F.embedding(nodes_Q, vectors_ND) for vectors_ND in (fused.sides_ND, fused.ids_ND))
        own_B = nodes_N[rows_B]
        all_G = gather_rows(own_B)
        if all_G is own_B:  # one process has all keys
            keys_KD, counts_K = own_QD, counts_Q
        else:
            keys_K, counts_K = all_G.unique(return_counts=True)
            keys_KD = F.embedding(keys_K, table_ND)
        losses_Q = info_nce(queries_QD, own_QD, keys_KD, counts_K, self.temperature)
        return self.cl_weight * losses_Q[inverse_B]

    def _of_users(self, chosen: Tensor, tables: Tables) -> "_Fused":
        """Fuse the views of chosen users, whose views of contents are computed here."""
        views_NV = self.graph.items_to_users.rows(chosen, tables["views"])
        return self._fused("users", chosen, F.embedding(chosen, tables["users"]), views_NV)

    def _of_items(self, chosen: Tensor | None, tables: Tables) -> "_Fused":
        """Fuse the views of chosen items, or of all."""
        return self._fused("items", chosen, rows_of(tables["items"], chosen), rows_of(tables["views"], chosen))

    def _fused(self, side: str, chosen: Tensor | None, ids_ND: Tensor, views_NV: Tensor) -> "_Fused":
        dim = ids_ND.shape[1]
        preferences = [torch.sigmoid(self.preferences[view](ids_ND)) for view in self.views]
        if self.training and side in self._kept:
            kept = rows_of(self._kept[side], chosen).split(dim, dim=1)
            preferences = [preference * kept_ND for preference, kept_ND in zip(preferences, kept, strict=True)]
        named = (dict(zip(self.views, nodes, strict=True)) for nodes in (views_NV.split(dim, dim=1), preferences))
        return _Fused(ids_ND, self.fuse(*named))


class _Fused(NamedTuple):
    """Some nodes."""

    ids_ND: Tensor
    """Their C."""
    sides_ND: Tensor
    """The term added to it."""

    @property
    def vectors_ND(self) -> Tensor:
        """Their f."""
        return self.ids_ND + self.sides_ND
