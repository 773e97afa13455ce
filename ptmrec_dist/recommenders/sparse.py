"""Sparse matrices that node tables are multiplied with.

Shape suffixes: M rows, N columns, C chosen rows, E entries, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex

_CACHED_ROWS = 2**15  # of a table, which a product reads in any order: 8 MiB with the usual width of 64


class CompressedRows(nn.Module):
    """A matrix in compressed rows that tables are multiplied with.

    Args:
        stacked: The matrix, or blocks of its columns, each with all rows, one below the other: [blocks M, columns of a block].
        shape: Number of rows M and of columns N of the matrix.
        bounds: Where the entries of each block start, and where the last one ends.
    """

    stacked: Tensor

    def __init__(self, stacked: Tensor, shape: tuple[int, int], bounds: list[int]) -> None:
        super().__init__()
        self.register_buffer("stacked", stacked, persistent=False)
        self.shape, self.bounds = shape, bounds

    def times(self, table_ND: Tensor) -> Tensor:
        """Compute A X.

        Args:
            table_ND: X, float32 [N, D].

        Returns:
            The product, float32 [M, D].
        """
        # `matrix @ table` fills a table with zeros as well, and then copies it.
        return self.add_to(table_ND.new_zeros(self.shape[0], table_ND.shape[1]), table_ND)

    def add_to(self, sums_MD: Tensor, table_ND: Tensor, scale: float = 1.0) -> Tensor:
        """Add a product to a table, in place.

        Args:
            sums_MD: What is added to, float32 [M, D].
            table_ND: X, float32 [N, D].
            scale: What A X is multiplied by.

        Returns:
            `sums_MD`.
        """
        if len(self.bounds) == 2:
            return sums_MD.addmm_(self.stacked, table_ND, alpha=scale)
        for block, rows_ND in enumerate(table_ND.split(self.stacked.shape[1])):
            sums_MD.addmm_(self._block(block, len(rows_ND)), rows_ND, alpha=scale)
        return sums_MD

    def with_values(self, values_E: Tensor) -> "CompressedRows":
        """Create a matrix with entries at the same positions.

        Args:
            values_E: Value of each entry, in the order in which they are stored, float32 [E].

        Returns:
            The matrix; it shares the index tensors.
        """
        starts, columns_E = self.stacked.crow_indices(), self.stacked.col_indices()
        stacked = _compressed(starts, columns_E, values_E, tuple(self.stacked.shape))
        return CompressedRows(stacked, self.shape, self.bounds)

    def _block(self, block: int, columns: int) -> Tensor:
        rows, entries = self.shape[0], slice(*self.bounds[block : block + 2])
        starts = self.stacked.crow_indices()[block * rows : (block + 1) * rows + 1] - entries.start
        columns_E, values_E = self.stacked.col_indices()[entries], self.stacked.values()[entries]
        return _compressed(starts, columns_E, values_E, (rows, columns))


class SparseMatrix(nn.Module):
    """A sparse matrix A that node tables are multiplied with.

    A and its transpose are kept in compressed rows, sorted by PyG's `EdgeIndex`, so that the backward pass is as fast as
    the forward pass. They are not part of the state dict: the owner of the matrix rebuilds it.

    Args:
        rows_E: Row of each entry, int64 [E].
        columns_E: Column of each entry, int64 [E]; entries at the same position are added.
        values_E: Value of each entry, float32 [E].
        shape: Number of rows and of columns.
    """

    order: Tensor

    def __init__(self, rows_E: Tensor, columns_E: Tensor, values_E: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        edges, order_E = EdgeIndex(torch.stack([rows_E, columns_E]), sparse_size=shape).sort_by("row")
        (starts, columns_E), _ = edges.get_csr()
        values_E = values_E[order_E]
        (starts_of_columns, rows_E), transposed_E = edges.get_csc()
        matrix = CompressedRows(_compressed(starts, columns_E, values_E, shape), shape, [0, len(values_E)])
        self._keep(matrix, *_in_blocks(starts_of_columns, rows_E, values_E, transposed_E, shape[::-1]))

    def forward(self, table_ND: Tensor) -> Tensor:
        """Compute A X.

        Args:
            table_ND: X, float32 [columns, D].

        Returns:
            The product, float32 [rows, D]; a row without entries gives zeros.
        """
        product: Tensor = _Product.apply(self.matrix, self.transpose, table_ND)
        return product

    def transposed(self, table_MD: Tensor) -> Tensor:
        """Compute A^T X.

        Args:
            table_MD: X, float32 [rows, D].

        Returns:
            The product, float32 [columns, D].
        """
        product: Tensor = _Product.apply(self.transpose, self.matrix, table_MD)
        return product

    def rows(self, chosen_C: Tensor, table_ND: Tensor) -> Tensor:
        """Compute some rows of A X, in time proportional to their entries.

        Args:
            chosen_C: Rows, int64 [C]; they may repeat.
            table_ND: X, float32 [columns, D].

        Returns:
            These rows of the product, float32 [C, D].
        """
        firsts_C, counts_C = self._extents(chosen_C)
        offsets_C = counts_C.cumsum(0) - counts_C
        entries_E = (firsts_C - offsets_C).repeat_interleave(counts_C)
        entries_E += torch.arange(len(entries_E), device=entries_E.device)
        columns_E, values_E = self.matrix.stacked.col_indices()[entries_E].long(), self.values[entries_E]
        return F.embedding_bag(columns_E, table_ND, offsets_C, mode="sum", per_sample_weights=values_E)

    def share(self, chosen_C: Tensor) -> float:
        """Compute how large a share of the entries some rows have; waits for the device.

        Args:
            chosen_C: Rows, int64 [C]; they may repeat, and are then counted as often.

        Returns:
            0 for rows without entries, 1 for all rows.
        """
        return int(self._extents(chosen_C)[1].sum()) / max(1, len(self.values))

    @property
    def values(self) -> Tensor:
        """Value of each entry, float32 [E], row by row."""
        return self.matrix.stacked.values()

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Row and column of each entry, int64 [E] each, row by row."""
        counts_M, columns_E = self.matrix.stacked.crow_indices().diff(), self.matrix.stacked.col_indices().long()
        rows_M = torch.arange(len(counts_M), device=counts_M.device)
        return rows_M.repeat_interleave(counts_M, output_size=len(columns_E)), columns_E

    def with_values(self, values_E: Tensor) -> "SparseMatrix":
        """Create a matrix with entries at the same positions.

        Args:
            values_E: Value of each entry, row by row, float32 [E].

        Returns:
            The matrix; it shares the index tensors.
        """
        same = SparseMatrix.__new__(SparseMatrix)
        nn.Module.__init__(same)
        same._keep(self.matrix.with_values(values_E), self.transpose.with_values(values_E[self.order]), self.order)
        return same

    def _extents(self, chosen_C: Tensor) -> tuple[Tensor, Tensor]:
        """First entry of each of some rows, and how many it has."""
        starts = self.matrix.stacked.crow_indices()
        return starts[chosen_C], (starts[1:] - starts[:-1])[chosen_C]

    def _keep(self, matrix: CompressedRows, transpose: CompressedRows, order_E: Tensor) -> None:
        self.matrix, self.transpose = matrix, transpose
        self.register_buffer("order", order_E, persistent=False)


class _Product(torch.autograd.Function):
    """A X, whose gradient is the transpose's product."""

    @staticmethod
    def forward(ctx: Any, matrix: CompressedRows, transpose: CompressedRows, table_ND: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix.times(table_ND)

    @staticmethod
    def backward(ctx: Any, product_MD: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transpose.times(product_MD)


def _in_blocks(
    starts: Tensor, columns_E: Tensor, values_E: Tensor, order_E: Tensor, shape: tuple[int, int]
) -> tuple[CompressedRows, Tensor]:
    """Store a matrix in as many blocks of columns as its rows can bear, and reorder what the entries' order is.

    A product reads the table's rows in the order of the columns. A table that is far larger than the cache is read from memory
    row by row, unless the columns are taken block by block, at the price of passing over all rows of the product each time.
    """
    rows, columns = shape
    blocks = max(1, min(-(-columns // _CACHED_ROWS), len(order_E) // max(1, 2 * rows)))
    width, bounds = -(-columns // blocks), [0, len(order_E)]
    if blocks > 1:
        keys_E = torch.arange(rows, device=starts.device).repeat_interleave(starts.diff()) + columns_E // width * rows
        by_block_E = keys_E.argsort(stable=True)
        columns_E, order_E = (columns_E % width)[by_block_E], order_E[by_block_E]
        starts = F.pad(keys_E.bincount(minlength=blocks * rows).cumsum(0), (1, 0))
        bounds = starts[::rows].tolist()
    stacked = _compressed(starts, columns_E, values_E[order_E], (blocks * rows, width))
    return CompressedRows(stacked, shape, bounds), order_E


def _compressed(starts: Tensor, positions_E: Tensor, values_E: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows in compressed form; 32-bit indices, where they suffice, are faster to read."""
    small = max(*shape, len(values_E)) < 2**31
    starts, positions_E = (indices.int() if small else indices.long() for indices in (starts, positions_E))
    return torch.sparse_csr_tensor(starts, positions_E, values_E, shape, check_invariants=False)
