"""Rows whose intermediate results are too many to be kept for the backward pass.

Shape suffix: R rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_BLOCK_NUMBERS = 2**24
"""Numbers that are kept for the backward pass; where there are more, they are computed again block by block."""


def in_blocks(function: Callable[..., Tensor], columns: int, *inputs_R: Tensor) -> Tensor:
    """Apply a function in blocks of rows that are computed again in the backward pass, unless one block holds them all.

    Args:
        function: Function from some rows of the inputs to as many rows, without randomness.
        columns: Numbers that a row keeps for the backward pass.
        *inputs_R: Inputs, [R, ...] each.

    Returns:
        The rows of all blocks, [R, ...].
    """
    rows = max(1, _BLOCK_NUMBERS // columns)
    if len(inputs_R[0]) <= rows:
        return function(*inputs_R)
    blocks = zip(*(values.split(rows) for values in inputs_R), strict=True)
    return torch.cat([checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])
