"""Attention with the weights of another, whose fused projection is applied by a layer of its own, so that it can be wrapped.

Legend: B batch, N tokens, D width, H heads, W width of a head.
"""

from typing import Any

import torch.nn.functional as F
from open_clip.transformer import Attention
from torch import Tensor, nn

from ptmrec_dist.errors import UserError


class OpenAttention(nn.Module):
    """Self-attention with the weights of `nn.MultiheadAttention`.

    Args:
        fused: Attention with one weight for query, key and value; its parameters are shared, not copied.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.fused = (fused,)  # in a tuple, so that its parameters are not registered twice
        self.heads = fused.num_heads
        width = fused.in_proj_weight.shape[1]
        self.in_proj = nn.Linear(width, 3 * width, bias=fused.in_proj_bias is not None, device="meta")
        self.in_proj.weight, self.in_proj.bias = fused.in_proj_weight, fused.in_proj_bias
        self.out_proj: nn.Module = fused.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Apply attention, called as in open_clip's blocks: query, key and value are the same tokens [B, N, D]."""
        return self.out_proj(self._attended(query, attn_mask).transpose(1, 2).flatten(2)), None

    def _attended(self, tokens_BND: Tensor, attn_mask: Tensor | None) -> Tensor:
        projected_3BHNW = self.in_proj(tokens_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query_BHNW, key_BHNW, value_BHNW = projected_3BHNW
        if attn_mask is not None and attn_mask.ndim == 3:  # a mask for each head comes as [B * H, N, N]
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        return F.scaled_dot_product_attention(
            self._normed(query_BHNW, "ln_q"), self._normed(key_BHNW, "ln_k"), value_BHNW, attn_mask
        )

    def _normed(self, values_BHNW: Tensor, norm: str) -> Tensor:
        return values_BHNW


class OpenNormedAttention(OpenAttention):
    """Self-attention with the weights of open_clip's own `Attention`, which normalises queries, keys or outputs.

    Args:
        fused: Attention with one weight for query, key and value; its parameters are shared, not copied.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__(fused)
        self.ln_q, self.ln_k, self.ln_inner = fused.ln_q, fused.ln_k, fused.ln_inner
        self.head_scale = fused.head_scale

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Apply attention to tokens [B, N, D], called as in open_clip's custom blocks."""
        attended_BHNW = self._attended(x, attn_mask)
        if self.head_scale is not None:
            attended_BHNW = attended_BHNW * self.head_scale
        attended_BND: Tensor = self.out_proj(self.ln_inner(attended_BHNW.transpose(1, 2).flatten(2)))
        return attended_BND

    def _normed(self, values_BHNW: Tensor, norm: str) -> Tensor:
        normed_BHNW: Tensor = getattr(self, norm)(values_BHNW)
        return normed_BHNW


def opened(attention: Any) -> OpenAttention:
    """Open an attention.

    Args:
        attention: Attention with `in_proj_weight`.

    Returns:
        The same function of the same parameters.

    Raises:
        UserError: Attention of an unknown kind.
    """
    if isinstance(attention, Attention) and not attention.scaled_cosine:
        return OpenNormedAttention(attention)
    if isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None and attention.batch_first:
        return OpenAttention(attention)
    raise UserError(
        f"tuning.method: lora cannot be attached to {type(attention).__name__}; expected torch's MultiheadAttention or "
        "open_clip's Attention, choose another method"
    )
