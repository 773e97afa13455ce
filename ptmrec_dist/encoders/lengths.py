"""Texts of similar length are encoded together: padding to the longest of a whole batch may be most of the work.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ptmrec_dist.encoders.tower import Tower

_ROWS = 64
_LEAST_SAVED = 0.2
"""Fraction of the tokens that must be padding saved; below it a few large calls are faster than more small ones."""


def encode_by_length(tower: Tower, texts_BN: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode texts in groups of similar length; the rows keep their order.

    Not for parameters that are divided among ranks: all of them must call a tower equally often.

    Args:
        tower: The text tower.
        texts_BN: Token ids, int64 [B, N].
        encode: Encodes texts by their row numbers, cut to the longest of them.

    Returns:
        Features [B, D].
    """
    groups = groups_of_similar_length(tower, texts_BN)
    if len(groups) == 1:
        return encode(groups[0])
    encoded_BD = torch.cat([encode(rows) for rows in groups])
    return encoded_BD[torch.cat(groups).argsort()]


def groups_of_similar_length(tower: Tower, texts_BN: Tensor) -> list[Tensor]:
    """Divide texts by their length without padding.

    Args:
        tower: The text tower.
        texts_BN: Token ids, int64 [B, N].

    Returns:
        Row numbers, int64, from short to long; one group in the given order where more would hardly save padding.
    """
    lengths_B = torch.tensor([tower.trimmed(row[None]).shape[1] for row in texts_BN.cpu()])
    groups = lengths_B.argsort(stable=True).split(_ROWS)
    tokens = sum(len(rows) * int(lengths_B[rows[-1]]) for rows in groups if len(rows))
    if tokens > (1 - _LEAST_SAVED) * texts_BN.numel():
        groups = (torch.arange(len(texts_BN)),)
    return [rows.to(texts_BN.device) for rows in groups]
