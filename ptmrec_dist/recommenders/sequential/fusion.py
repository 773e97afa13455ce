"""Merge-attention: the tokens of an item's image and text in one transformer block (PMMRec, arXiv 2312.09602, eq. 3).

Shape suffixes: B items, N tokens of one or both modalities, W width of a modality's tokens, D width.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORM_EPS = 1e-12
_STD = 0.02
_WIDTH = 768
"""Width at which BERT's matrices have that standard deviation; narrower ones need larger entries to pass on as much."""

FUSED = "fused"
"""Name of the vectors made of all modalities; those of one are `image` and `text`."""

Tokens = Mapping[str, tuple[Tensor, Tensor]]
"""Modality to the states of an item's tokens, float32 [B, N, W], and which of them are no padding, bool [B, N]."""


class MergeAttention(nn.Module):
    """One block of self-attention over a class token of its own and the projected tokens of all modalities.

    The block has 4D inner units and a GELU, and normalises after the residual sum. It starts as BERT does, but with vectors of
    length 1: those of length sqrt(D), as published, would let scores start far apart.

    Args:
        projections: Modality to what maps its tokens from width W to D.
        dim: Width D.
        heads: Attention heads, a divisor of D.
        dropout: Fraction of the values that training drops.
        first: Represent a modality by its first token instead of the mean of its tokens.
    """

    def __init__(self, projections: Mapping[str, nn.Module], dim: int, heads: int, dropout: float, first: bool) -> None:
        super().__init__()
        self.first = first
        self.widths = dict.fromkeys((*projections, FUSED), dim)
        """Width of each kind of vectors that `forward` returns."""
        self.projections = nn.ModuleDict(projections)
        self.block: nn.TransformerEncoderLayer | None = None
        if len(projections) > 1:
            self.class_D = nn.Parameter(torch.empty(dim))
            self.block = nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, dropout, "gelu", layer_norm_eps=_NORM_EPS, batch_first=True
            )
            nn.init.normal_(self.class_D, std=_STD)
            for name, parameter in self.block.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif "norm" not in name:
                    nn.init.normal_(parameter, std=_STD * math.sqrt(_WIDTH / dim))
            nn.init.constant_(self.block.norm2.weight, 1 / math.sqrt(dim))

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Fuse.

        Args:
            tokens: Tokens of the modalities.

        Returns:
            Vectors of each modality alone, and `FUSED`, those of all: of one modality they are the same. [B, D] each.
        """
        items = len(next(iter(tokens.values()))[0])
        some = {name: _at_least_one(*tokens[name]) for name in self.projections}
        projected = {name: projection(some[name][0]) for name, projection in self.projections.items()}
        vectors = {name: self._pooled(states_BND, some[name][1]) for name, states_BND in projected.items()}
        if self.block is None:
            vectors[FUSED] = next(iter(vectors.values()))
        else:
            class_B1D = self.class_D.expand(max(items, 1), 1, -1)
            padding_BN = ~torch.cat([mask_BN for _, mask_BN in some.values()], dim=1)
            all_BND = torch.cat([class_B1D, *projected.values()], dim=1)
            vectors[FUSED] = self.block(all_BND, src_key_padding_mask=F.pad(padding_BN, (1, 0)))[:, 0]
        return {name: vectors_BD[:items] for name, vectors_BD in vectors.items()}

    def _pooled(self, states_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """The first token, or the mean of those that are no padding, [B, D]."""
        if self.first:
            return states_BND[:, 0]
        weights_BN1 = mask_BN[:, :, None].to(states_BND)
        return (states_BND * weights_BN1).sum(dim=1) / weights_BN1.sum(dim=1).clamp(min=1)


def _at_least_one(states_BND: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Make up an item for a rank that has none: torch's attention does not take an empty batch."""
    missing = 0 if len(states_BND) else 1
    return F.pad(states_BND, (0, 0, 0, 0, 0, missing)), F.pad(mask_BN, (0, 0, 0, missing), value=True)
