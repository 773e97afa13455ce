"""The graph of users and items that recommenders propagate over.

Shape suffixes: U users, I items, N participating items, E edges, D width.
"""

import functools
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.recommenders.rows import rows_of
from ptmrec_dist.recommenders.sparse import SparseMatrix

_RICHARDSON_ITERATIONS, _RELAXATION = 8, 1.6

_FEW = 4  # rows of a product are computed alone if they have less than a quarter of the entries


class InteractionGraph(nn.Module):
    """Users and items joined by interactions, each edge weighted 1 / sqrt(d_u d_i): D^-1/2 A D^-1/2 in two blocks.

    Args:
        users_E: User of each edge, int64 [E].
        items_E: Item of each edge, int64 [E]; duplicate pairs are one edge.
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

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """User and item of each edge, int64 [E] each, ordered by user."""
        return self.items_to_users.edges

    def propagate(self, users_UD: Tensor, items_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Average a table and its propagated versions, 1 / (L + 1) sum_l A^l E, as LightGCN does.

        Args:
            users_UD: Users of layer 0, float32 [U, D].
            items_ID: Items of layer 0, float32 [I, D].
            layers: Number of layers L.

        Returns:
            Users [U, D] and items [I, D]. Nodes without edges keep 1 / (L + 1) of layer 0.
        """
        if layers < 1:
            return users_UD, items_ID
        users, items = _SelfAdjoint.apply(functools.partial(self._mean_of_layers, layers), users_UD, items_ID)
        return users, items

    def last_users(self, chosen_C: Tensor, users_UD: Tensor, items_ID: Tensor, layers: int) -> Tensor:
        """Compute the last layer of `propagate` for some users: few of all, a batch's, have few of the edges.

        Args:
            chosen_C: Users, int64 [C].
            users_UD: Users of layer 0, float32 [U, D].
            items_ID: Items as `propagate` returns them with L - 1 layers, float32 [I, D].
            layers: Number of layers L.

        Returns:
            Their rows of what `propagate` returns with L layers, [C, D].
        """
        own_CD = F.embedding(chosen_C, users_UD)
        # How many edges the rows have must be known to the host, for which a step on a GPU does not wait.
        waits = users_UD.is_cuda and torch.is_grad_enabled()
        sums = self.items_to_users
        few = not waits and _FEW * sums.share(chosen_C) < 1
        sums_CD = sums.rows(chosen_C, items_ID) if few else F.embedding(chosen_C, sums(items_ID))
        return (own_CD + layers * sums_CD) / (layers + 1)

    def last_items(self, chosen: Tensor | None, users_UD: Tensor, items_ID: Tensor, layers: int) -> Tensor:
        """Compute the last layer of `propagate` for all items, of which a batch has most that have many edges.

        Args:
            chosen: Items to return, int64 [C]; None for all.
            users_UD: Users as `propagate` returns them with L - 1 layers, float32 [U, D].
            items_ID: Items of layer 0, float32 [I, D].
            layers: Number of layers L.

        Returns:
            Their rows of what `propagate` returns with L layers, [C, D].
        """
        sums_ID = self.items_to_users.transposed(users_UD)
        return (rows_of(items_ID, chosen) + layers * rows_of(sums_ID, chosen)) / (layers + 1)

    def propagate_passes(self, users_UD: Tensor, items_IP: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Propagate several tables side by side that have the same users in layer 0.

        Propagation is linear: what comes from users is computed once for all passes, a third less work for three of them than
        `propagate` has with users repeated.

        Args:
            users_UD: Users of layer 0 of every pass, float32 [U, D].
            items_IP: Items of layer 0 of all passes, float32 [I, P], P a multiple of D.
            layers: Number of layers L.

        Returns:
            Users [U, P] and items [I, P].
        """
        if not layers:
            return users_UD.repeat(1, items_IP.shape[1] // users_UD.shape[1]), items_IP
        to_users, to_items = self.items_to_users, self.items_to_users.transposed
        users_UD, items_ID = _mean_of_one_side(users_UD, to_items, to_users, layers)
        items_IP, users_UP = _mean_of_one_side(items_IP, to_users, to_items, layers)
        return _add_to_passes(users_UP, users_UD), _add_to_passes(items_IP, items_ID)

    @torch.no_grad()
    def sources(self, users_UD: Tensor, items_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Find tables that `propagate` turns into given ones, nearly: eight Richardson iterations.

        The eigenvalues of (1 + A + ... + A^L) / (L + 1) lie in [1/4, 1] for two layers, where the rest is at most 0.6^8 of the
        tables. With an odd number of layers, the smallest is 0, and what has no source stays away.

        Args:
            users_UD: Users as they should be after propagation, float32 [U, D].
            items_ID: Items as they should be, float32 [I, D].
            layers: Number of layers L.

        Returns:
            Users [U, D] and items [I, D] of layer 0.
        """
        users, items = users_UD, items_ID
        for _ in range(_RICHARDSON_ITERATIONS):
            found_UD, found_ID = self.propagate(users, items, layers)
            users = users + _RELAXATION * (users_UD - found_UD)
            items = items + _RELAXATION * (items_ID - found_ID)
        return users, items

    def sum_neighbours(self, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one layer of propagation, A E.

        Args:
            users_UD: Users, float32 [U, D].
            items_ID: Items, float32 [I, D].

        Returns:
            Users [U, D] and items [I, D]; nodes without edges get zeros.
        """
        users, items = _SelfAdjoint.apply(self._sums, users_UD, items_ID)
        return users, items

    def prune(self, fraction: float, generator: Generator) -> "InteractionGraph":
        """Drop edges at random, preferably between nodes of high degree, and recompute the weights.

        The kept edges are sampled without replacement with probabilities proportional to their weights
        1 / sqrt(d_u d_i): those with the smallest of independent exponential times with these rates, which works for any
        number of edges (torch.multinomial is limited to 2^24).

        Args:
            fraction: Fraction of the edges to drop, in [0, 1).
            generator: Source of randomness; its device need not be the graph's.

        Returns:
            A graph with round((1 - fraction) E) edges, at least one if there is any.
        """
        weights_E = self.items_to_users.values
        users_E, items_E = self.edges
        count = min(len(weights_E), max(1, round((1 - fraction) * len(weights_E))))
        times_E = torch.empty(len(weights_E), device=generator.device).exponential_(generator=generator)
        kept_E = (times_E.to(weights_E.device) / weights_E).topk(count, largest=False, sorted=False).indices
        return InteractionGraph(users_E[kept_E], items_E[kept_E], *self.items_to_users.matrix.shape)

    def drop(self, probability: Tensor, generator: Generator) -> "InteractionGraph":
        """Drop edges at random, each with the same probability, and scale the others by 1 / (1 - probability).

        Needs no device synchronisation: the edges keep their positions, only weights change.

        Args:
            probability: Probability of being dropped, float32 scalar in [0, 1).
            generator: Source of randomness, on the graph's device.

        Returns:
            A graph whose propagation equals this one's in expectation, for one layer.
        """
        weights_E = self.items_to_users.values
        kept_E = torch.rand(weights_E.shape, generator=generator, device=weights_E.device) >= probability
        return self._reweighted(weights_E * kept_E / (1 - probability))

    def without_edges(self, fraction: float, generator: Generator) -> "InteractionGraph":
        """Drop edges at random, all with the same probability, and recompute the weights from the degrees that are left.

        Needs no device synchronisation: the edges keep their positions, only weights change.

        Args:
            fraction: Fraction of the edges to drop, in [0, 1]; their number is rounded.
            generator: Source of randomness; its device need not be the graph's.

        Returns:
            A graph in which dropped edges have the weight 0.
        """
        return self._keep(_survivors(self.items_to_users.values, fraction, generator))

    def without_nodes(self, fraction: float, generator: Generator) -> "InteractionGraph":
        """Drop all edges of nodes chosen at random, and recompute the weights as `without_edges` does.

        Args:
            fraction: Fraction of the users, and of the items, that lose their edges, in [0, 1]; the numbers are rounded.
            generator: Source of randomness; its device need not be the graph's.

        Returns:
            A graph in which dropped edges have the weight 0.
        """
        weights_E, (users_E, items_E) = self.items_to_users.values, self.edges
        users, items = (weights_E.new_empty(count) for count in self.items_to_users.matrix.shape)
        kept_U, kept_I = (_survivors(nodes, fraction, generator) for nodes in (users, items))
        return self._keep(kept_U[users_E] & kept_I[items_E])

    def _keep(self, kept_E: Tensor) -> "InteractionGraph":
        kept_E = kept_E.float()
        degrees_E = [
            kept_E.new_zeros(count).index_add_(0, nodes_E, kept_E)[nodes_E]
            for count, nodes_E in zip(self.items_to_users.matrix.shape, self.edges, strict=True)
        ]
        return self._reweighted(kept_E * (degrees_E[0] * degrees_E[1]).clamp(min=1).rsqrt())

    def _reweighted(self, weights_E: Tensor) -> "InteractionGraph":
        graph = InteractionGraph.__new__(InteractionGraph)
        nn.Module.__init__(graph)
        graph.items_to_users = self.items_to_users.with_values(weights_E)
        return graph

    def _sums(self, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        return self.items_to_users.matrix.times(items_ID), self.items_to_users.transpose.times(users_UD)

    def _mean_of_layers(self, layers: int, users_UD: Tensor, items_ID: Tensor) -> tuple[Tensor, Tensor]:
        # E + A (E + A (E + ...)) needs no table other than the running one.
        to_users, to_items = self.items_to_users.matrix, self.items_to_users.transpose
        users, items = users_UD, items_ID
        for layer in range(1, layers + 1):
            scale = 1 / (layers + 1) if layer == layers else 1
            users, items = (
                to_users.add_to(users_UD * scale, items, scale),
                to_items.add_to(items_ID * scale, users, scale),
            )
        return users, items


class _SelfAdjoint(torch.autograd.Function):
    """Propagation is a symmetric operator: its backward pass is the same propagation."""

    @staticmethod
    def forward(
        ctx: Any, operator: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], users_UD: Tensor, items_ID: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.operator = operator
        return operator(users_UD, items_ID)

    @staticmethod
    def backward(ctx: Any, users_UD: Tensor, items_ID: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, *ctx.operator(users_UD, items_ID)


def _mean_of_one_side(
    own_ND: Tensor, to_other: Callable[[Tensor], Tensor], to_own: Callable[[Tensor], Tensor], layers: int
) -> tuple[Tensor, Tensor]:
    """Propagate a table of users or of items where the other one is zero: what reaches its own side, and the other."""
    tables = [own_ND / (layers + 1)]
    for product in islice(cycle((to_other, to_own)), layers):
        tables.append(product(tables[-1]))
    return sum(tables[2::2], tables[0]), sum(tables[3::2], tables[1])


def _add_to_passes(table_NP: Tensor, common_ND: Tensor) -> Tensor:
    """Add a table to each of those side by side."""
    tables_NMD: Tensor = table_NP.unflatten(1, (-1, common_ND.shape[1]))
    return (tables_NMD + common_ND[:, None]).flatten(1)


def _survivors(values_N: Tensor, fraction: float, generator: Generator) -> Tensor:
    """Choose which of N elements stay, bool [N], on their device."""
    order_N = torch.randperm(len(values_N), generator=generator, device=generator.device)
    dropped = order_N[: round(fraction * len(values_N))].to(values_N.device)
    return torch.ones_like(values_N, dtype=torch.bool).index_fill_(0, dropped, False)


def neighbour_means(nodes_E: Tensor, neighbours_E: Tensor, shape: tuple[int, int]) -> SparseMatrix:
    """Create the matrix whose product with a table has the mean over each node's neighbours, D^-1 A.

    Args:
        nodes_E: Node of each edge, int64 [E].
        neighbours_E: Its neighbour, int64 [E]; duplicate pairs are one edge.
        shape: Number of nodes, and of nodes that may be neighbours.

    Returns:
        The matrix, [nodes, neighbours]; a node without edges has an empty row.
    """
    pairs_E = (nodes_E * shape[1] + neighbours_E).unique()
    nodes_E, neighbours_E = pairs_E // shape[1], pairs_E % shape[1]
    weights_E = 1 / torch.bincount(nodes_E, minlength=shape[0])[nodes_E].float()
    return SparseMatrix(nodes_E, neighbours_E, weights_E, shape)
