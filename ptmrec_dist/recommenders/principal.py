"""Linear maps that read the principal directions of wide features alone.

Shape suffixes: I items, R directions, D width of the outputs, d_m width of a modality's features.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.recommenders.memo import OncePerTable

_log = logging.getLogger(__name__)
_ROWS = 2**14  # of larger tables, as many rows at equal distances give the directions
_ITERATIONS = 3
_LARGE_PART = 0.9


class PrincipalMap(nn.Linear):
    r"""A linear map x -> W V^T x + b of features, with V their R principal directions, the table's right singular vectors.

    Over all items, a map of all d_m columns takes I d_m D multiplications forward and as many backward, in every step. Here a
    table that is frozen is multiplied with V once, and then with I R D. V is fixed, and part of the state dict. Features of
    at most R columns are mapped as they are.

    Args:
        table_ID: Features that give the directions, float32 [I, d_m].
        dim: Width of the outputs D.
        rank: Directions R; 0 for no limit.
        bias: Add a bias, zero at first.
        world: Ranks that need equal directions and must all call this; by default this process is alone.
    """

    directions: Tensor | None

    def __init__(self, table_ID: Tensor, dim: int, rank: int, bias: bool, world: World | None = None) -> None:
        width = table_ID.shape[1]
        is_wide = 0 < rank < width
        super().__init__(rank if is_wide else width, dim, bias=bias)
        # V has orthonormal columns: W V^T is initialised as a map of all columns would be.
        nn.init.uniform_(self.weight, -((6 / (width + dim)) ** 0.5), (6 / (width + dim)) ** 0.5)
        if bias:
            nn.init.zeros_(self.bias)
        directions = _of_all_ranks(principal_directions(table_ID, rank), world) if is_wide else None
        self.register_buffer("directions", directions)
        self._reduced = OncePerTable[Tensor]()

    def forward(self, table_ID: Tensor) -> Tensor:
        """Map the features of all items, [I, d_m], to [I, D]."""
        directions_RD = self.directions
        if directions_RD is None:
            return super().forward(table_ID)
        if table_ID.requires_grad:
            return F.linear(table_ID, self.weight @ directions_RD, self.bias)
        return super().forward(self._reduced.get(table_ID, lambda: table_ID @ directions_RD.T))


def principal_maps(inputs: Inputs, dim: int, rank: int, bias: bool) -> nn.ModuleDict:
    """Create the maps of all modalities.

    Args:
        inputs: Features, and ranks that must all call this.
        dim: Width of the outputs.
        rank: Directions that are read of wider features; 0 for no limit.
        bias: Add biases.

    Returns:
        Modality to its map, [I, d_m] -> [I, dim].
    """
    return nn.ModuleDict(
        {modality: PrincipalMap(table, dim, rank, bias, inputs.world) for modality, table in inputs.features.items()}
    )


@torch.no_grad()
def principal_directions(table_ID: Tensor, rank: int) -> Tensor:
    """Find the subspace that holds most of a table's squared norm, by subspace iteration.

    Halko et al., Finding Structure with Randomness, SIAM Review 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4.

    Args:
        table_ID: Features, float32 [I, d_m].
        rank: Number of directions R, less than d_m.

    Returns:
        Orthonormal rows, float32 [R, d_m], the same for the same table.
    """
    rows_ID = table_ID[:: -(-len(table_ID) // _ROWS)]
    generator = torch.Generator().manual_seed(0)
    basis_DR = torch.randn(rows_ID.shape[1], rank, generator=generator).to(rows_ID.device)
    for _ in range(_ITERATIONS):
        basis_DR, _ = torch.linalg.qr(rows_ID.T @ (rows_ID @ basis_DR))
    part = float((rows_ID @ basis_DR).square().sum() / rows_ID.square().sum().clamp(min=1e-30))
    level = logging.INFO if part >= _LARGE_PART else logging.WARNING
    message = "%d of %d directions hold %.0f %% of the features' squared norm; --model.rank 0 reads them all"
    _log.log(level, message, rank, rows_ID.shape[1], 100 * part)
    return basis_DR.T.contiguous()


def _of_all_ranks(directions_RD: Tensor, world: World | None) -> Tensor:
    """Those of the first rank: other hosts may round otherwise."""
    if world is None or world.size == 1:
        return directions_RD
    own = directions_RD if world.is_first else torch.zeros_like(directions_RD)
    return sum_over_ranks(own.to(world.device)).to(directions_RD.device)
