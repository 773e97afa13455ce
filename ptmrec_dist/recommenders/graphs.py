"""The graphs that recommenders propagate over: users and items, and items that look alike.

Shape suffixes: U users, I items, N nodes of one kind, E edges, K neighbours, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch_geometric import EdgeIndex

_BLOCK_SIMILARITIES = 2**24


class SparseMatrix(nn.Module):
    """A fixed sparse matrix A that node tables are multiplied with.

    The product runs on compressed rows, kept by PyG's `EdgeIndex`; those of the transpose are made when a gradient
    first asks for them. They are no part of the state dict: whoever owns the matrix rebuilds it.

    Args:
        rows_E: Row of each entry, int64 [E].
        columns_E: Column of each entry, int64 [E]; entries at one place are added.
        values_E: Value of each entry, float32 [E].
        shape: Number of rows and of columns.
    """

    edges: EdgeIndex
    values: Tensor

    def __init__(self, rows_E: Tensor, columns_E: Tensor, values_E: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        edges, order_E = EdgeIndex(torch.stack([rows_E, columns_E]), sparse_size=shape).sort_by("row")
        self.register_buffer("edges", edges.fill_cache_(no_transpose=True), persistent=False)
        self.register_buffer("values", values_E[order_E], persistent=False)

    def forward(self, table_ND: Tensor) -> Tensor:
        """Compute A X.

        Args:
            table_ND: X, float32 [columns, D].

        Returns:
            The product, float32 [rows, D]; a row without entries gives zeros.
        """
        product: Tensor = self.edges.matmul(table_ND, self.values)
        return product


class InteractionGraph(nn.Module):
    """Users and items joined by interactions, each edge weighted 1 / sqrt(d_u d_i): D^-1/2 A D^-1/2 in two blocks.

    Args:
        users_E: User of each edge, int64 [E].
        items_E: Item of each edge, int64 [E]; a pair that occurs twice is one edge.
        num_users: Number of users U.
        num_items: Number of items I.
    """

    def __init__(self, users_E: Tensor, items_E: Tensor, num_users: int, num_items: int) -> None:
        super().__init__()
        pairs_E = (users_E * num_items + items_E).unique()
        users_E, items_E = pairs_E // num_items, pairs_E % num_items
        degrees_U = torch.bincount(users_E, minlength=num_users)
        degrees_I = torch.bincount(items_E, minlength=num_items)
        weights_E = (degrees_U[users_E] * degrees_I[items_E]).float().rsqrt()
        self.items_to_users = SparseMatrix(users_E, items_E, weights_E, (num_users, num_items))
        self.users_to_items = SparseMatrix(items_E, users_E, weights_E, (num_items, num_users))

    def propagate(self, users_UD: Tensor, items_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Average a table and its propagated versions, 1 / (L + 1) sum_l A^l E, as LightGCN does.

        Args:
            users_UD: Users of layer 0, float32 [U, D].
            items_ID: Items of layer 0, float32 [I, D].
            layers: Number of layers L.

        Returns:
            Users [U, D] and items [I, D]. What has no edge keeps its share 1 / (L + 1) of layer 0.
        """
        users, items = _SelfAdjoint.apply(self._mean_of_layers, layers, users_UD, items_ID)
        return users, items

    def _mean_of_layers(self, users_UD: Tensor, items_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        # E + A (E + A (E + ...)) needs no table beside the running one.
        users_UD, items_ID = users_UD / (layers + 1), items_ID / (layers + 1)
        users, items = users_UD, items_ID
        for _ in range(layers):
            users, items = self.items_to_users(items).add_(users_UD), self.users_to_items(users).add_(items_ID)
        return users, items

    def prune(self, share: float, generator: Generator) -> "InteractionGraph":
        """Drop edges at random, those between busy users and popular items first, and weight the rest anew.

        The edges kept are drawn one after the other without replacement with probabilities in proportion to their
        weights 1 / sqrt(d_u d_i). That is what the smallest of independent exponential times with these rates do, for
        any number of edges (torch.multinomial ends at 2^24).

        Args:
            share: Share of the edges to drop, in [0, 1).
            generator: Source of randomness; its device need not be the graph's.

        Returns:
            A graph with round((1 - share) E) edges, at least one where there is one.
        """
        weights_E = self.items_to_users.values
        edges = self.items_to_users.edges.as_tensor()
        count = min(len(weights_E), max(1, round((1 - share) * len(weights_E))))
        times_E = torch.empty(len(weights_E), device=generator.device).exponential_(generator=generator)
        kept_E = (times_E.to(weights_E.device) / weights_E).topk(count, largest=False, sorted=False).indices
        num_users, num_items = self.items_to_users.edges.get_sparse_size()
        return InteractionGraph(edges[0, kept_E], edges[1, kept_E], num_users, num_items)


class _SelfAdjoint(torch.autograd.Function):
    """Propagation is a symmetric operator: gradients go back through it as tables go forth."""

    @staticmethod
    def forward(
        ctx: Any, operator: Callable[..., tuple[Tensor, Tensor]], layers: int, users_UD: Tensor, items_ID: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.operator, ctx.layers = operator, layers
        return operator(users_UD, items_ID, layers)

    @staticmethod
    def backward(ctx: Any, users_UD: Tensor, items_ID: Tensor) -> tuple[None, None, Tensor, Tensor]:
        return None, None, *ctx.operator(users_UD, items_ID, ctx.layers)


def nearest_neighbours(features_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Join each row to the k other rows of the highest cosine similarity, never holding N x N numbers.

    A row is not its own neighbour (common code counts it as the first of its k). A row of zeros says nothing: it gets
    no neighbours and is nobody's.

    Args:
        features_ND: One row a node, float32 [N, D].
        k: Neighbours K; a node has fewer where there are fewer other nodes.

    Returns:
        Nodes and their neighbours, int64 [E] each, E <= N K. The graph is directed.
    """
    directions_ND = F.normalize(features_ND)
    empty_N = ~directions_ND.any(dim=1)
    num_nodes = len(directions_ND)
    nodes = torch.arange(num_nodes, device=features_ND.device)
    block = max(1, _BLOCK_SIMILARITIES // max(1, num_nodes))
    neighbours, kept = [], []
    for block_B in nodes.split(block):
        similarities_BN = directions_ND[block_B] @ directions_ND.T
        similarities_BN[:, empty_N] = -torch.inf
        similarities_BN[empty_N[block_B]] = -torch.inf
        similarities_BN[torch.arange(len(block_B), device=nodes.device), block_B] = -torch.inf
        values_BK, columns_BK = similarities_BN.topk(min(k, num_nodes), dim=1)
        neighbours.append(columns_BK)
        kept.append(values_BK > -torch.inf)
    kept_NK = torch.cat(kept)
    return nodes[:, None].expand_as(kept_NK)[kept_NK], torch.cat(neighbours)[kept_NK]


def item_graph(tables: list[Tensor], shares: list[float], items_N: Tensor, k: int) -> SparseMatrix:
    """Mix the items' nearest-neighbour graphs of several modalities: S = sum_m share_m S_m.

    Every row of S_m is the mean over an item's neighbours, which is D^-1/2 A D^-1/2 with the number of neighbours on
    both sides' diagonals where every item has k of them.

    Args:
        tables: Features of each modality, float32 [I, d_m].
        shares: Share of each modality.
        items_N: Items that take part, int64 [N]; the others have no edge in either direction.
        k: Neighbours of an item in each modality.

    Returns:
        S, [I, I].
    """
    num_items = len(tables[0])
    rows, columns, values = [], [], []
    for table_ID, share in zip(tables, shares, strict=True):
        nodes_E, neighbours_E = nearest_neighbours(table_ID[items_N], k)
        counts_N = torch.bincount(nodes_E, minlength=len(items_N))
        rows.append(items_N[nodes_E])
        columns.append(items_N[neighbours_E])
        values.append(share / counts_N[nodes_E].float())
    return SparseMatrix(torch.cat(rows), torch.cat(columns), torch.cat(values), (num_items, num_items))
