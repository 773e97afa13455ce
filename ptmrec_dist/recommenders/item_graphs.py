"""Graphs of items with similar features.

Shape suffixes: I items, N participating items, E edges.
"""

from pathlib import Path

import torch
from torch import Tensor

from ptmrec_dist.distributed import World
from ptmrec_dist.recommenders.neighbours import nearest_neighbours
from ptmrec_dist.recommenders.sparse import SparseMatrix


def item_graph(
    tables: list[Tensor],
    weights: list[float],
    items_N: Tensor,
    k: int,
    cache: Path | None = None,
    world: World | None = None,
) -> SparseMatrix:
    """Mix the items' nearest-neighbour graphs of several modalities: S = sum_m weight_m S_m.

    Every row of S_m is the mean over an item's neighbours, which equals D^-1/2 A D^-1/2, with D the number of
    neighbours on both sides, where every item has k of them.

    Args:
        tables: Features of each modality, float32 [I, d_m].
        weights: Weight of each modality.
        items_N: Participating items, int64 [N]; the others have no edge in either direction.
        k: Neighbours of an item in each modality.
        cache: Folder that caches neighbours; by default none.
        world: Ranks that compute them together, as in `nearest_neighbours`; by default each process computes all.

    Returns:
        S, [I, I].
    """
    num_items = len(tables[0])
    rows, columns, values = [], [], []
    for table_ID, weight in zip(tables, weights, strict=True):
        found = nearest_neighbours(table_ID[items_N], k, cache, world=world)
        counts_N = torch.bincount(found.nodes, minlength=len(items_N))
        rows.append(items_N[found.nodes])
        columns.append(items_N[found.neighbours])
        values.append(weight / counts_N[found.nodes].float())
    return SparseMatrix(torch.cat(rows), torch.cat(columns), torch.cat(values), (num_items, num_items))


def cosine_graph(
    table_ID: Tensor,
    items_N: Tensor,
    k: int,
    cache: Path | None = None,
    world: World | None = None,
    self_edges: bool = False,
) -> SparseMatrix:
    """Join every item to the k others of the highest cosine, weighted by it and normalised: D^-1/2 W D^-1/2.

    D holds the sums of W's rows, and 1 for an empty one. Cosines of zero or below are no edges.

    Args:
        table_ID: Features, float32 [I, d_m].
        items_N: Items that may be neighbours, int64 [N]; the others have rows, but no columns.
        k: Neighbours of an item.
        cache: Folder that caches neighbours; by default none.
        world: Ranks that compute them together, as in `nearest_neighbours`; by default each process computes all.
        self_edges: Whether the items that may be neighbours are also their own, with cosine 1.

    Returns:
        The graph, [I, I].
    """
    num_items = len(table_ID)
    candidates_I = torch.zeros(num_items, dtype=torch.bool, device=table_ID.device).index_fill_(0, items_N, True)
    found = nearest_neighbours(table_ID, k, cache, candidates_I, world)
    alike_E = found.similarities > 0
    rows_E, columns_E, cosines_E = (column[alike_E] for column in (found.nodes, found.neighbours, found.similarities))
    if self_edges:
        rows_E, columns_E = (torch.cat([nodes_E, items_N]) for nodes_E in (rows_E, columns_E))
        cosines_E = torch.cat([cosines_E, cosines_E.new_ones(len(items_N))])
    degrees_I = cosines_E.new_zeros(num_items).index_add_(0, rows_E, cosines_E)
    scales_I = degrees_I.where(degrees_I > 0, 1).rsqrt()
    weights_E = scales_I[rows_E] * cosines_E * scales_I[columns_E]
    return SparseMatrix(rows_E, columns_E, weights_E, (num_items, num_items))


def strongest_edges(first: SparseMatrix, second: SparseMatrix) -> SparseMatrix:
    """Take the element-wise maximum of two graphs: every edge of either, with the larger weight where both have it.

    Args:
        first: Edges with positive weights, [I, I].
        second: The same, [I, I].

    Returns:
        The union, [I, I].
    """
    num_items = first.matrix.shape[0]
    positions = [graph.edges[0] * num_items + graph.edges[1] for graph in (first, second)]
    positions_E, order = torch.cat(positions).unique(return_inverse=True)
    weights = torch.cat([first.values, second.values])
    weights_E = weights.new_zeros(len(positions_E)).scatter_reduce_(0, order, weights, "amax")
    return SparseMatrix(positions_E // num_items, positions_E % num_items, weights_E, (num_items, num_items))
