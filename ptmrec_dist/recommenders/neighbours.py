"""Items with similar features: exact nearest neighbours by cosine similarity, in blocks, computed once.

Shape suffixes: N nodes, B nodes of a block, K neighbours, E edges, D width.
"""

import contextlib
import functools
import hashlib
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.distributed.tensor_file import pieces_of, write_pieces
from ptmrec_dist.topk import largest

_log = logging.getLogger(__name__)
_BLOCK_SIMILARITIES = 2**25  # with few rows, a product mostly rearranges the large table
_BLOCK_NUMBERS = 2**24  # 64 MiB
_METHOD = "cosine, exact, without self; 1"  # part of every key: change it when the result changes


@dataclass(frozen=True)
class Neighbours:
    """A directed graph from nodes to their nearest neighbours."""

    nodes: Tensor
    """The node of each edge, int64 [E], ascending; E <= N K."""
    neighbours: Tensor
    """Its neighbour, int64 [E]; a node's nearest comes first."""
    similarities: Tensor
    """Cosine similarity of the two, float32 [E]."""

    def padded(self, num_nodes: int, k: int) -> tuple[Tensor, Tensor]:
        """Arrange the edges by node.

        Args:
            num_nodes: Number of nodes N.
            k: Most neighbours of a node K.

        Returns:
            Neighbours, int64 [N, K], -1 where a node has fewer, and similarities, float32 [N, K], 0 there.
        """
        counts_N = torch.bincount(self.nodes, minlength=num_nodes)
        columns_E = torch.arange(len(self.nodes), device=self.nodes.device)
        columns_E -= (counts_N.cumsum(0) - counts_N)[self.nodes]
        neighbours_NK = self.neighbours.new_full((num_nodes, k), -1)
        similarities_NK = self.similarities.new_zeros(num_nodes, k)
        neighbours_NK[self.nodes, columns_E] = self.neighbours
        similarities_NK[self.nodes, columns_E] = self.similarities
        return neighbours_NK, similarities_NK


def nearest_neighbours(
    features_ND: Tensor,
    k: int,
    cache: Path | None = None,
    candidates_N: Tensor | None = None,
    world: World | None = None,
) -> Neighbours:
    """Find the k other rows of the highest cosine similarity for each row, without materialising N x N numbers.

    A row is not its own neighbour (common implementations count it as the first of its k). A row of zeros has no
    neighbours and is a neighbour of none. A node has fewer than k neighbours where there are fewer other nodes.

    Collective where `world` is given: every rank must call this, with the same features.

    Args:
        features_ND: One row per node, float32 [N, D].
        k: Neighbours K.
        cache: Folder that caches results under a key of the features' content and k; by default none.
        candidates_N: Rows that may be neighbours, bool [N]; by default all.
        world: Ranks that divide the blocks and compute them on their devices; the first one writes to the cache. By
            default this process computes all of them on the device of the features.

    Returns:
        The graph, on the device of the features.
    """
    world = world or World(0, 1, features_ND.device)
    file = None if cache is None else cache / f"{_key(features_ND, k, candidates_N)}.safetensors"
    found = None if file is None else _read(file)
    if _is_missing_somewhere(found, world):
        found = _compute(features_ND, k, candidates_N, world)
        if file is not None and world.is_first:
            _write(found, file)
    assert found is not None
    return Neighbours(*(column.to(features_ND.device) for column in vars(found).values()))


def cosines_with(table_ND: Tensor, neighbours_NK: Tensor) -> Tensor:
    """Compute the cosine of every row with chosen other rows, with gradient.

    Where N x K x D numbers exceed `_BLOCK_NUMBERS`, rows are taken in blocks, which the backward pass computes again.

    Args:
        table_ND: One row per node, float32 [N, D].
        neighbours_NK: Other rows, int32 or int64 [N, K]; -1 for none.

    Returns:
        float32 [N, K]; 0 for no neighbour.
    """
    directions_ND = F.normalize(table_ND)
    rows = max(1, _BLOCK_NUMBERS // max(1, neighbours_NK.shape[1] * table_ND.shape[1]))

    def block(start: int) -> Tensor:
        others_BK = neighbours_NK[start : start + rows]
        others_BKD = F.embedding(others_BK.clamp(min=0), directions_ND)
        cosines_BK = torch.einsum("bd,bkd->bk", directions_ND[start : start + rows], others_BKD)
        return cosines_BK.where(others_BK >= 0, 0)

    if len(table_ND) <= rows:
        return block(0)
    again = functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(start) for start in range(0, len(table_ND), rows)])


def _is_missing_somewhere(found: Neighbours | None, world: World) -> bool:
    """Whether any rank has to compute; then all do, because hosts need not see the same folder."""
    if world.size == 1:
        return found is None
    return bool(sum_over_ranks(torch.tensor([int(found is None)], device=world.device)))


def _read(file: Path) -> Neighbours | None:
    try:
        return Neighbours(**load_file(file))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, TypeError) as error:
        _log.warning("%s cannot be read (%s) and is computed again", file, error)
        return None


def _write(found: Neighbours, file: Path) -> None:
    # Several jobs may write at once: each writes its own file, then renames it.
    fresh = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_pieces(fresh, pieces_of(vars(found)))
        os.replace(fresh, file)
    except OSError as error:
        _log.warning("neighbours are not cached: %s", error)
        with contextlib.suppress(OSError):
            fresh.unlink()


def _key(features_ND: Tensor, k: int, candidates_N: Tensor | None) -> str:
    digest = hashlib.sha256(f"{_METHOD}; {k}; {tuple(features_ND.shape)}; {features_ND.dtype};".encode())
    for table in (features_ND.detach(), candidates_N):
        if table is not None:
            digest.update(table.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _compute(features_ND: Tensor, k: int, candidates_N: Tensor | None, world: World) -> Neighbours:
    neighbours_NK, similarities_NK = _nearest(features_ND, k, candidates_N, world)
    edges_NK = similarities_NK > -torch.inf
    nodes_E = torch.arange(len(edges_NK), device=world.device)[:, None].expand_as(edges_NK)[edges_NK]
    return Neighbours(nodes_E, neighbours_NK[edges_NK], similarities_NK[edges_NK])


def _nearest(features_ND: Tensor, k: int, candidates_N: Tensor | None, world: World) -> tuple[Tensor, Tensor]:
    """Find the k nearest of each node and their similarities, [N, K] each; -inf where there are fewer."""
    directions_ND = F.normalize(features_ND.detach().to(world.device))
    empty_N = ~directions_ND.any(dim=1)
    barred_N = empty_N if candidates_N is None else empty_N | ~candidates_N.to(world.device)
    num_nodes = len(directions_ND)
    kept = min(k, num_nodes)
    nodes_N = torch.arange(num_nodes, device=world.device)
    neighbours_NK = torch.zeros(num_nodes, kept, dtype=torch.int64, device=world.device)
    similarities_NK = torch.zeros(num_nodes, kept, device=world.device)
    block = max(1, _BLOCK_SIMILARITIES // max(1, num_nodes))
    memory_BN = directions_ND.new_empty(min(block, num_nodes), num_nodes)
    # Ranks take whole blocks, so that results do not depend on their number.
    for block_B in nodes_N.split(block)[world.rank :: world.size]:
        scores_BN = torch.mm(directions_ND[block_B], directions_ND.T, out=memory_BN[: len(block_B)])
        scores_BN.masked_fill_(barred_N, -torch.inf)
        scores_BN[empty_N[block_B]] = -torch.inf
        scores_BN[nodes_N[: len(block_B)], block_B] = -torch.inf
        similarities_NK[block_B], neighbours_NK[block_B] = largest(scores_BN, kept)
    if world.size == 1:
        return neighbours_NK, similarities_NK
    return sum_over_ranks(neighbours_NK), sum_over_ranks(similarities_NK)  # each row is one rank's, zero on the others
