"""Rows of a table scaled to unit length.

Shape suffixes: N rows, D width.
"""

from typing import Any

import torch
from torch import Tensor

_SHORTEST = 1e-12  # a row of zeros stays one


def unit_rows(table_ND: Tensor) -> Tensor:
    """Scale the rows of a large table to unit length, as `F.normalize` does, whose backward pass writes twice as many tables.

    Args:
        table_ND: Any table, float32 [*, D].

    Returns:
        float32 [*, D].
    """
    units: Tensor = _UnitRows.apply(table_ND)
    return units


class _UnitRows(torch.autograd.Function):
    """x / |x|, whose gradient is what is orthogonal to x, over |x|."""

    @staticmethod
    def forward(ctx: Any, table_ND: Tensor) -> Tensor:
        lengths_N1 = table_ND.norm(dim=-1, keepdim=True).clamp_(min=_SHORTEST)
        units_ND: Tensor = table_ND / lengths_N1
        ctx.save_for_backward(units_ND, lengths_N1)
        return units_ND

    @staticmethod
    def backward(ctx: Any, gradients_ND: Tensor) -> Tensor:
        units_ND, lengths_N1 = ctx.saved_tensors
        along_N1 = (units_ND * gradients_ND).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradients_ND, units_ND, along_N1, value=-1).div_(lengths_N1)
