"""Common base of SLMRec and MMGCL: a pass over the graph of interactions for IDs and one per modality, read out together.

Shape suffixes: B batch rows, C chosen items, K distinct nodes of all ranks' batches, N nodes, U users, I items, D width of a
pass, P all passes side by side, those of IDs first.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ptmrec_dist.config.recommenders import MultiPassConfig
from ptmrec_dist.distributed import gather_rows
from ptmrec_dist.recommenders.base import Inputs, Queries, Tables
from ptmrec_dist.recommenders.fitted import FittedRecommender
from ptmrec_dist.recommenders.graphs import InteractionGraph
from ptmrec_dist.recommenders.layers import embedding_table, linear_map
from ptmrec_dist.recommenders.losses import penalty_weight
from ptmrec_dist.recommenders.principal import principal_maps
from ptmrec_dist.recommenders.rows import Features, rows_of
from ptmrec_dist.recommenders.tables import TableRecommender

Sides = tuple[Tensor, Tensor]
"""Tables of users and of items."""


class MultiPassRecommender(FittedRecommender, TableRecommender):
    r"""LightGCN for IDs and for each modality, and a linear read-out of all of them, for one modality or both.

    .. math::
        (C_U, C_I) = \mathrm{LightGCN}(A, E_U, E_I), \quad
        (V_{m,U}, V_{m,I}) = \mathrm{LightGCN}(A, E_U, W_m x_m + b_m)

        f_u = R_U [C_u ; V_{1,u} ; V_{2,u}] + b_U, \quad f_i = R_I [C_i ; V_{1,i} ; V_{2,i}] + b_I

    Users [U, dim] and items [I, dim]. All passes start from the same users E_U. They are one propagation of tables side
    by side, because sparse products of wide tables are cheaper than several of narrow ones.

    Users are contrasted with the positive items p' of a batch, which are sampled by popularity, so that the score that fits
    best is not ln P(i | u) but ln P(i | u) / P(i): what a user likes beyond what all like. With `debias` each p' has the
    weight 1 / d_p', its number of training interactions, as in Yi et al., Sampling-Bias-Corrected Neural Modeling for Large
    Corpus Item Recommendations, RecSys 2019, and the score fits ln P(i | u).

    In the ID-only vectors (eq. 11 of PTMRec), the columns of the modalities are zero.

    Args:
        inputs: Numbers of users and items, the training interactions, and the features.
        config: Hyper-parameters, see `MultiPassConfig`.
    """

    multimodal: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: MultiPassConfig) -> None:
        super().__init__(inputs, config.dim)
        self.dim, self.layers = config.dim, config.layers
        self.reg_weight = penalty_weight(config.reg_weight, inputs.train, factor=10)
        self.cl_weight, self.cl_temperature = config.cl_weight, config.cl_temperature
        self.passes = 1 + len(self.modalities)
        self.user_embeddings = embedding_table(inputs.num_users, config.dim)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)
        self.maps = principal_maps(inputs, config.dim, config.rank, bias=True)
        self.user_readout = linear_map(self.passes * config.dim, config.dim)
        self.item_readout = linear_map(self.passes * config.dim, config.dim)
        users_E, items_E = torch.tensor(inputs.train.users), torch.tensor(inputs.train.items)
        self.graph = InteractionGraph(users_E, items_E, inputs.num_users, inputs.num_items)
        popularity_I = torch.bincount(items_E, minlength=inputs.num_items)
        self.weights_I: Tensor
        weights_I = 1 / popularity_I.clamp(min=1) if config.debias else torch.ones(inputs.num_items)
        self.register_buffer("weights_I", weights_I, persistent=False)
        self.generator: Generator | None = None

    def start_epoch(self, generator: Generator) -> None:
        """Store the generator of what steps sample: its state is the same on every rank, and part of checkpoints."""
        self.generator = generator

    def tables(self, features: Features) -> Tables:
        """Propagate all passes, `users` [U, P] and `items` [I, P]; in training, also what the contrastive terms compare."""
        projected = [self.maps[modality](features[modality]) for modality in self.modalities]
        start = self.user_embeddings.weight, torch.cat([self.item_embeddings.weight, *projected], dim=1)
        users, items = self.graph.propagate_passes(*start, self.layers)
        tables = {"users": users, "items": items}
        if self.training and self.generator is not None and self.cl_weight:
            tables |= self.views(start, (users, items), self.generator)
        return tables

    def views(self, start: Sides, whole: Sides, generator: Generator) -> dict[str, Tensor]:
        """Propagate the further tables that the contrastive terms compare; by default none.

        Args:
            start: Users of layer 0 of every pass [U, D], and items of all passes [I, P].
            whole: Users [U, P] and items [I, P], propagated over the whole graph.
            generator: Source of randomness; its device need not be the tables'.

        Returns:
            Tables of users [U, P] and items [I, P], by name.
        """
        return {}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute f of users, [B, D]."""
        return self.read_users(super().users(queries, tables))

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute f of items, [C, D]; features enter through the tables alone."""
        return self.read_items(super().items(features, tables, chosen))

    def read_users(self, rows_BP: Tensor) -> Tensor:
        """Read out users.

        Args:
            rows_BP: All passes of some users, float32 [B, P].

        Returns:
            Vectors that are scored, [B, D].
        """
        vectors_BD: Tensor = self.user_readout(rows_BP)
        return vectors_BD

    def read_items(self, rows_CP: Tensor) -> Tensor:
        """Read out items.

        Args:
            rows_CP: All passes of some items, float32 [C, P].

        Returns:
            Vectors that are scored, [C, D].
        """
        vectors_CD: Tensor = self.item_readout(rows_CP)
        return vectors_CD

    def one_pass(self, table_NP: Tensor, pass_1: Tensor) -> Tensor:
        """Select the columns of a pass, without device synchronisation.

        Args:
            table_NP: All passes, float32 [N, P].
            pass_1: Number of the pass, int64 [1].

        Returns:
            float32 [N, D].
        """
        return table_NP.view(len(table_NP), self.passes, self.dim).index_select(1, pass_1).squeeze(1)

    def replace_pass(self, table_NP: Tensor, pass_1: Tensor, columns_ND: Tensor) -> Tensor:
        """Replace the columns of a pass, without device synchronisation.

        Args:
            table_NP: All passes, float32 [N, P].
            pass_1: Number of the pass, int64 [1].
            columns_ND: What replaces it, float32 [N, D].

        Returns:
            A copy, float32 [N, P].
        """
        passes = table_NP.view(len(table_NP), self.passes, self.dim)
        return passes.index_copy(1, pass_1, columns_ND[:, None]).flatten(1)

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return users [B, D] and items [C, D] as read out from the pass of IDs alone."""
        ids = super().users(queries, tables), rows_of(tables["items"], chosen)
        users_BP, items_CP = (F.pad(rows[:, : self.dim], (0, rows.shape[1] - self.dim)) for rows in ids)
        return self.read_users(users_BP), self.read_items(items_CP)


class BatchNodes(NamedTuple):
    """Nodes of the batches of all ranks, each once however often it occurs."""

    nodes_K: Tensor
    """The nodes, int64 [K]."""
    counts_K: Tensor
    """Rows of all batches that have them, int64 [K]."""
    rows_B: Tensor
    """Where the node of each of this rank's rows stands among them, int64 [B]."""


def batch_nodes(rows_B: Tensor) -> BatchNodes:
    """Gather the nodes of all ranks' batches.

    Collective: every rank must call this.

    Args:
        rows_B: Node of each of this rank's rows, int64 [B].

    Returns:
        The nodes.
    """
    nodes_K, counts_K = gather_rows(rows_B).unique(return_counts=True)
    return BatchNodes(nodes_K, counts_K, torch.searchsorted(nodes_K, rows_B))
