"""Sparse matrices that node tables are multiplied with.

Shape suffixes: N columns, C chosen rows, E entries, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import EdgeIndex


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

    matrix: Tensor
    transpose: Tensor
    order: Tensor

    def __init__(self, rows_E: Tensor, columns_E: Tensor, values_E: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        edges, order_E = EdgeIndex(torch.stack([rows_E, columns_E]), sparse_size=shape).sort_by("row")
        (starts, columns_E), _ = edges.get_csr()
        (starts_of_columns, rows_E), transposed_E = edges.get_csc()
        values_E = values_E[order_E]
        self._keep(
            _compressed(starts, columns_E, values_E, shape),
            _compressed(starts_of_columns, rows_E, values_E[transposed_E], shape[::-1]),
            transposed_E,
        )

    def forward(self, table_ND: Tensor) -> Tensor:
        """Compute A X.

        Args:
            table_ND: X, float32 [columns, D].

        Returns:
            The product, float32 [rows, D]; a row without entries gives zeros.
        """
        product: Tensor = _Product.apply(self.matrix, self.transpose, table_ND)
        return product

    def transposed(self, table_ND: Tensor) -> Tensor:
        """Compute A^T X.

        Args:
            table_ND: X, float32 [rows, D].

        Returns:
            The product, float32 [columns, D].
        """
        product: Tensor = _Product.apply(self.transpose, self.matrix, table_ND)
        return product

    def rows(self, chosen_C: Tensor, table_ND: Tensor) -> Tensor:
        """Compute some rows of A X, in time proportional to their entries.

        Args:
            chosen_C: Rows, int64 [C]; they may repeat.
            table_ND: X, float32 [columns, D].

        Returns:
            These rows of the product, float32 [C, D].
        """
        starts_N = self.matrix.crow_indices()
        firsts_C, counts_C = starts_N[chosen_C], (starts_N[1:] - starts_N[:-1])[chosen_C]
        offsets_C = counts_C.cumsum(0) - counts_C
        entries_E = (firsts_C - offsets_C).repeat_interleave(counts_C)
        entries_E += torch.arange(len(entries_E), device=entries_E.device)
        columns_E, values_E = self.matrix.col_indices()[entries_E].long(), self.values[entries_E]
        return F.embedding_bag(columns_E, table_ND, offsets_C, mode="sum", per_sample_weights=values_E)

    @property
    def values(self) -> Tensor:
        """Value of each entry, float32 [E], row by row."""
        return self.matrix.values()

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Row and column of each entry, int64 [E] each, row by row."""
        counts_N, columns_E = self.matrix.crow_indices().diff(), self.matrix.col_indices().long()
        rows_N = torch.arange(len(counts_N), device=counts_N.device)
        return rows_N.repeat_interleave(counts_N, output_size=len(columns_E)), columns_E

    def with_values(self, values_E: Tensor) -> "SparseMatrix":
        """Create a matrix with entries at the same positions.

        Args:
            values_E: Value of each entry, row by row, float32 [E].

        Returns:
            The matrix; it shares the index tensors.
        """
        same = SparseMatrix.__new__(SparseMatrix)
        nn.Module.__init__(same)
        same._keep(_with_values(self.matrix, values_E), _with_values(self.transpose, values_E[self.order]), self.order)
        return same

    def _keep(self, matrix: Tensor, transpose: Tensor, order_E: Tensor) -> None:
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("transpose", transpose, persistent=False)
        self.register_buffer("order", order_E, persistent=False)


class _Product(torch.autograd.Function):
    """A X, whose gradient is the transpose's product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transpose: Tensor, table_ND: Tensor) -> Tensor:
        ctx.transpose = transpose
        return multiply(matrix, table_ND)

    @staticmethod
    def backward(ctx: Any, product_ND: Tensor) -> tuple[None, None, Tensor]:
        return None, None, multiply(ctx.transpose, product_ND)


def multiply(matrix: Tensor, table_ND: Tensor) -> Tensor:
    """Multiply into new zeros: `matrix @ table_ND` fills a table with zeros as well, and then copies it.

    Args:
        matrix: Matrix in compressed rows, float32 [rows, columns].
        table_ND: Table, float32 [columns, D].

    Returns:
        The product, float32 [rows, D].
    """
    return table_ND.new_zeros(matrix.shape[0], table_ND.shape[1]).addmm_(matrix, table_ND)


def _compressed(starts: Tensor, positions_E: Tensor, values_E: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows in compressed form; 32-bit indices, where they suffice, are faster to read."""
    small = max(*shape, len(values_E)) < 2**31
    starts, positions_E = (indices.int() if small else indices.long() for indices in (starts, positions_E))
    return torch.sparse_csr_tensor(starts, positions_E, values_E, shape, check_invariants=False)


def _with_values(matrix: Tensor, values_E: Tensor) -> Tensor:
    return _compressed(matrix.crow_indices(), matrix.col_indices(), values_E, tuple(matrix.shape))
