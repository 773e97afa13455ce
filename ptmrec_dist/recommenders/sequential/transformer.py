"""Causal transformers that encode histories.

Shape suffixes: B histories, L items, D width, H heads.
"""

import torch
from torch import Tensor, nn

_NORM_EPS = 1e-6


class CausalBlocks(nn.Module):
    """Blocks of self-attention in which each item attends to those before it and to itself.

    A block has attention and a ReLU network, each normalised after its residual sum.

    Args:
        dim: Width D.
        layers: Blocks.
        heads: Attention heads H, a divisor of D.
        dropout: Fraction of the values that training drops.
        inner: Width of the networks.
    """

    def __init__(self, dim: int, layers: int, heads: int, dropout: float, inner: int) -> None:
        super().__init__()
        self.heads = heads
        block = nn.TransformerEncoderLayer(
            dim, heads, inner, dropout, layer_norm_eps=_NORM_EPS, batch_first=True, norm_first=False
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        xavier_normal(self)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Attend.

        Args:
            states_BLD: States, [B, L, D].
            mask_BL: Whether there is an item, bool [B, L]; padding is on the left.

        Returns:
            The state after each item, finite also where there is padding, [B, L, D].
        """
        attended: Tensor = self.blocks(states_BLD, mask=hidden_keys(mask_BL).repeat_interleave(self.heads, dim=0))
        return attended


class CausalTransformer(CausalBlocks):
    """Adds positions to items and lets each attend to those before it and to itself.

    LN(e + p), dropout, and blocks of self-attention (SASRec, arXiv 1808.09781, as the baseline of PMMRec, arXiv 2312.09602,
    eq. 4). The latest item always has the last position.

    Args:
        dim: Width D.
        length: Longest history L.
        layers: Blocks.
        heads: Attention heads H, a divisor of D.
        dropout: Fraction of the values that training drops.
        inner: Width of the networks; by default 4D.
    """

    def __init__(
        self, dim: int, length: int, layers: int, heads: int, dropout: float, inner: int | None = None
    ) -> None:
        super().__init__(dim, layers, heads, dropout, inner or 4 * dim)
        self.positions_LD = nn.Parameter(torch.empty(length, dim))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_normal_(self.positions_LD)

    def positioned(self, items_BLD: Tensor) -> Tensor:
        """Add positions to items, and normalise.

        Args:
            items_BLD: Vectors of the items, [B, L, D].

        Returns:
            What the first block reads, [B, L, D].
        """
        positioned_BLD: Tensor = self.dropout(self.norm(items_BLD + self.positions_LD[-items_BLD.shape[1] :]))
        return positioned_BLD

    def forward(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Encode histories.

        Args:
            items_BLD: Vectors of the items, [B, L, D].
            mask_BL: Whether there is an item, bool [B, L]; padding is on the left.

        Returns:
            The state after each item, finite also where there is padding, [B, L, D].
        """
        return super().forward(self.positioned(items_BLD), mask_BL)


def xavier_normal(module: nn.Module) -> None:
    """Initialise all matrices of a module by Xavier's normal distribution.

    Args:
        module: The module.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)


def hidden_keys(mask_BL: Tensor, causal: bool = True) -> Tensor:
    """Find what positions must not attend to: later items, and padding.

    Padding attends to itself, because the softmax over nothing is NaN.

    Args:
        mask_BL: Whether there is an item, bool [B, L].
        causal: Whether later items are hidden.

    Returns:
        True where the second position is hidden from the first, bool [B, L, L].
    """
    length = mask_BL.shape[1]
    itself_LL = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    padding_BLL = ~mask_BL[:, None, :] & ~itself_LL
    if not causal:
        return padding_BLL
    return padding_BLL | torch.ones_like(itself_LL).triu(diagonal=1)
