"""The causal transformer that encodes histories.

Shape suffixes: B histories, L items, D width, H heads.
"""

import torch
from torch import Tensor, nn

_NORM_EPS = 1e-6


class CausalTransformer(nn.Module):
    """Adds positions to items and lets each attend to those before it and to itself.

    LN(e + p), dropout, and blocks of self-attention and a ReLU network of width 4D, each normalised after its residual
    sum (SASRec, arXiv 1808.09781, as the baseline of PMMRec, arXiv 2312.09602, eq. 4). The latest item always has the
    last position.

    Args:
        dim: Width D.
        length: Longest history L.
        layers: Blocks.
        heads: Attention heads H, a divisor of D.
        dropout: Fraction of the values that training drops.
    """

    def __init__(self, dim: int, length: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.positions_LD = nn.Parameter(torch.empty(length, dim))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, layer_norm_eps=_NORM_EPS, batch_first=True, norm_first=False
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def forward(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Encode histories.

        Args:
            items_BLD: Vectors of the items, [B, L, D].
            mask_BL: Whether there is an item, bool [B, L]; padding is on the left.

        Returns:
            The state after each item, finite also where there is padding, [B, L, D].
        """
        length = items_BLD.shape[1]
        states_BLD = self.dropout(self.norm(items_BLD + self.positions_LD[-length:]))
        attended: Tensor = self.blocks(states_BLD, mask=hidden_keys(mask_BL).repeat_interleave(self.heads, dim=0))
        return attended


def hidden_keys(mask_BL: Tensor) -> Tensor:
    """Find what positions must not attend to: later items, and padding.

    Padding attends to itself, for the softmax over nothing is not a number.

    Args:
        mask_BL: Whether there is an item, bool [B, L].

    Returns:
        True where the second position is hidden from the first, bool [B, L, L].
    """
    length = mask_BL.shape[1]
    later_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).triu(diagonal=1)
    itself_LL = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    return later_LL | (~mask_BL[:, None, :] & ~itself_LL)
