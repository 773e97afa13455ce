"""What MGCN and SMORE share: items seen through several views beside that of IDs, and what users make of them.

Shape suffixes: B batch rows, G rows of all ranks' batches, N nodes, U users, I items, D width of a view, V all views of
contents side by side, W the view of IDs before them.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.config.recommenders import MultiViewConfig
from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Features, Inputs, Recommender, bpr_term, embedding_table, l2_term, modal_maps
from ptmrec_dist.recommenders.graphs import InteractionGraph, cosine_graph
from ptmrec_dist.recommenders.ridge import fit_maps

MODALITIES = ("image", "text")


class MultiViewRecommender(Recommender):
    r"""A view of IDs and several views of contents, fused node by node.

    .. math::
        C = \mathrm{LightGCN}(A, E_U, E_I), \quad
        V_{v,I} = S_v (E_I \odot \sigma(G_v(y_v))), \quad V_{v,U} = R V_{v,I}, \quad
        f = C + \mathrm{fuse}(V, \sigma(P_v(C))), \quad \hat y_{ui} = f_u \cdot f_i

        L = -\ln \sigma(\hat y_{up} - \hat y_{un}) + \frac{\lambda}{2} (|f_u|^2 + |f_p|^2 + |f_n|^2) +
        \mu (\mathrm{NCE}(f_u - C_u, C) + \mathrm{NCE}(f_p - C_p, C))

    R is the user rows of D^-1/2 A D^-1/2, S_v a graph of similar items. What a view sees of an item, y_v, and how views
    are fused is each model's own. The contrastive terms (`info_nce`) run over the users, and over the items taken, of the
    batches of all ranks, those that occur twice included.

    Nothing in this objective compares features with users, so eq. 12 of PTMRec gets projections of its own. They are
    zero until `fit_projections` fits them: ridge regression from features to the vectors f of items with training
    interactions. A cold item is scored by f_u . mean_m P_m x_im.

    Items without training interactions have rows in S_v, but no columns: they learn from items that look alike, and their
    untrained embeddings reach nobody.

    Args:
        inputs: Numbers of users and items, the training interactions, and features of images and texts.
        config: Hyper-parameters, see `MultiViewConfig`.
        knn: Modality to the neighbours of an item in its graph.
        map_bias: Whether the maps W_m have a bias.

    Raises:
        UserError: A modality is missing.
    """

    propagates: ClassVar[bool] = True
    multimodal: ClassVar[bool] = True
    views: ClassVar[tuple[str, ...]]
    """Names of the views of contents, in the order of their columns."""

    def __init__(
        self, inputs: Inputs, config: MultiViewConfig, *, knn: Mapping[str, int], map_bias: bool = False
    ) -> None:
        if set(inputs.features) != set(MODALITIES):
            raise UserError(
                f"modalities: {type(self).__name__} needs both image and text, got {', '.join(inputs.features)} only; "
                "choose --modalities both, or vbpr or freedom"
            )
        super().__init__(inputs)
        self.layers, self.reg_weight, dim = config.layers, config.reg_weight, config.dim
        self.cl_weight, self.temperature, self.dropout = config.cl_weight, config.temperature, 0.0
        self.users = embedding_table(inputs.num_users, dim)
        self.items = embedding_table(inputs.num_items, dim)
        self.maps = modal_maps(inputs.features, dim, bias=map_bias)
        self.gates = nn.ModuleDict({view: nn.Linear(dim, dim) for view in self.views})
        self.preferences = nn.ModuleDict({view: nn.Linear(dim, dim) for view in self.views})
        self.projections = modal_maps(inputs.features, dim)
        for projection in self.projections.parameters():
            nn.init.zeros_(projection)
        users_E, items_E = torch.tensor(inputs.train.users), torch.tensor(inputs.train.items)
        self.graph = InteractionGraph(users_E, items_E, inputs.num_users, inputs.num_items)
        self.warm_items: Tensor
        self.register_buffer("warm_items", items_E.unique(), persistent=False)
        self.item_graphs = nn.ModuleDict(
            {
                modality: cosine_graph(inputs.features[modality], self.warm_items, neighbours, inputs.cache)
                for modality, neighbours in knn.items()
            }
        )
        self._kept: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def see(self, projected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compute what each view sees of the items, y_v.

        Args:
            projected: Modality to W_m x_m, [I, D].

        Returns:
            View to y_v, [I, D].
        """

    @abstractmethod
    def fuse(self, views: Mapping[str, Tensor], preferences: Mapping[str, Tensor]) -> Tensor:
        """Fuse the views of some nodes, each by itself.

        Args:
            views: View to V_v, [N, D].
            preferences: View to sigmoid(P_v(C)), [N, D].

        Returns:
            What joins C, [N, D].
        """

    def start_epoch(self, generator: Generator) -> None:
        """Draw what dropout keeps, once for the epoch: ranks agree, and an interrupted epoch can go on."""
        if not self.dropout:
            return
        width = len(self.views) * self.users.embedding_dim

        def draw(rows: int) -> Tensor:
            uniform_NV = torch.rand(rows, width, generator=generator, device=generator.device)
            return ((uniform_NV >= self.dropout) / (1 - self.dropout)).to(self.users.weight.device)

        self._kept = draw(self.users.num_embeddings), draw(self.items.num_embeddings)

    def propagate(self, features: Features) -> tuple[Tensor, Tensor]:
        """Compute all views before they are fused, users [U, W] and items [I, W], C in the first D columns."""
        users_UD, items_ID = self.collaborative()
        seen = self.see({modality: self.maps[modality](features[modality]) for modality in self.modalities})
        items_IV = torch.cat(
            [
                self.item_graphs[view](self.items.weight * torch.sigmoid(self.gates[view](seen[view])))
                for view in self.views
            ],
            dim=1,
        )
        users_UV = self.graph.items_to_users(items_IV)
        return torch.cat([users_UD, users_UV], dim=1), torch.cat([items_ID, items_IV], dim=1)

    def representations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Compute f of users [U, D] and items [I, D]."""
        tables = self.propagate(features)
        kept = self._dropout() or (None, None)
        users, items = (self._fused(table_NW, kept_NV) for table_NW, kept_NV in zip(tables, kept, strict=True))
        return users[0] + users[1], items[0] + items[1]

    def loss(
        self,
        users_B: Tensor,
        positives_B: Tensor,
        negatives_B: Tensor,
        representations: tuple[Tensor, Tensor] | None,
        features: Features,
    ) -> dict[str, Tensor]:
        """Compute the terms `bpr`, `l2`, `contrast_users` and `contrast_items`, [B] each, from what `propagate` gave.

        Collective: every rank must call this.
        """
        assert representations is not None
        items_N = torch.cat([positives_B, negatives_B])

        def batch_of(users: Tensor, items: Tensor) -> Tensor:
            return torch.cat([F.embedding(users_B, users), F.embedding(items_N, items)])

        kept = self._dropout()
        # Only the batch's rows are fused: users, items taken, items not taken.
        ids_ND, sides_ND = self._fused(batch_of(*representations), batch_of(*kept) if kept else None)
        users_BD, positives_BD, negatives_BD = (ids_ND + sides_ND).chunk(3)
        terms = {
            "bpr": bpr_term(users_BD, positives_BD - negatives_BD),
            "l2": self.reg_weight * l2_term(users_BD, positives_BD, negatives_BD),
        }
        names, rows = ("contrast_users", "contrast_items"), (users_B, positives_B)
        parts = zip(names, rows, representations, ids_ND.chunk(3), sides_ND.chunk(3))
        for name, rows_B, table_NW, ids_BD, sides_BD in parts:
            ids_GD = F.embedding(gather_rows(rows_B), table_NW)[:, : self.users.embedding_dim]
            terms[name] = self.cl_weight * info_nce(sides_BD, ids_BD, ids_GD, self.temperature)
        return terms

    def collaborative(self) -> tuple[Tensor, Tensor]:
        """Compute C of users [U, D] and items [I, D]."""
        return self.graph.propagate(self.users.weight, self.items.weight, self.layers)

    def modal_users(self, features: Features) -> Tensor:
        """Compute f of users, [U, D]."""
        return self.representations(features)[0]

    def modal_projection(self, modality: str) -> Callable[[Tensor], Tensor]:
        """Return P_m, [*, d_m] -> [*, D]."""
        return self.projections[modality]

    @torch.no_grad()
    def fit_projections(self, features: Features) -> None:
        """Fit each P_m, by itself, to the vectors f of items with training interactions."""
        training = self.training
        targets_ND = self.eval().representations(features)[1][self.warm_items]
        self.train(training)
        fit_maps(self.projections, features, self.warm_items, targets_ND)

    def _dropout(self) -> tuple[Tensor, Tensor] | None:
        return self._kept if self.training else None

    def _fused(self, table_NW: Tensor, kept_NV: Tensor | None) -> tuple[Tensor, Tensor]:
        """C and what joins it, [N, D] each."""
        ids_ND, *views = table_NW.split(self.users.embedding_dim, dim=1)
        preferences = [torch.sigmoid(self.preferences[view](ids_ND)) for view in self.views]
        if kept_NV is not None:
            kept = kept_NV.split(self.users.embedding_dim, dim=1)
            preferences = [preference * kept_ND for preference, kept_ND in zip(preferences, kept, strict=True)]
        named = (dict(zip(self.views, tables, strict=True)) for tables in (views, preferences))
        return ids_ND, self.fuse(*named)


def info_nce(queries_BD: Tensor, keys_BD: Tensor, keys_GD: Tensor, temperature: float) -> Tensor:
    """Compute the contrastive loss -log(exp(cos(q, k) / t) / sum over all keys of exp(cos(q, k') / t)).

    Args:
        queries_BD: Queries q, float32 [B, D].
        keys_BD: The key k of each query, float32 [B, D].
        keys_GD: All keys k', those of the queries included, float32 [G, D]; a key that occurs twice counts twice.
        temperature: Temperature t, 0.025 or more: below that, float32 cannot hold the exponentials.

    Returns:
        The loss of each query, float32 [B].
    """
    queries_BD, keys_BD, keys_GD = F.normalize(queries_BD) / temperature, F.normalize(keys_BD), F.normalize(keys_GD)
    # A cosine is at most 1: less 1 / t, no exponential overflows, and no pass over [B, G] looks for a maximum.
    highest = queries_BD.new_full((1,), 1 / temperature)
    weights_BG = torch.addmm(-highest, queries_BD, keys_GD.T).exp_()
    return weights_BG.sum(dim=1).log() + highest - (queries_BD * keys_BD).sum(dim=1)
