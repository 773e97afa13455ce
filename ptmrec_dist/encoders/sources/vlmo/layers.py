"""Layers common to VLMo and BEiT-3: self-attention, feed-forward expert, patches, and one modality's way through a block.

Legend: B batch, N tokens, D width, H heads, W width of a head, P patches.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with separate projections of query, key and value.

    Args:
        width: Width D of the tokens.
        heads: Number of heads H, which divides D.
        key_bias: Whether keys have a bias. It never changes the output, since softmax is invariant to it.
        inner_norm: Epsilon of a LayerNorm before the output projection (Sub-LN, arXiv 2210.06423); None for no such norm.
    """

    def __init__(self, width: int, heads: int, key_bias: bool = False, inner_norm: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.norm = nn.Identity() if inner_norm is None else nn.LayerNorm(width, eps=inner_norm)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor, seen: Tensor | None) -> Tensor:
        """Let every token attend to the tokens that are not padding.

        Args:
            tokens_BND: [B, N, D].
            seen: Boolean [B, 1, N, N], true where a token (row) attends to another (column); None where all do.

        Returns:
            [B, N, D].
        """
        query_BHNW, key_BHNW, value_BHNW = (
            projection(tokens_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended_BHNW = F.scaled_dot_product_attention(query_BHNW, key_BHNW, value_BHNW, seen)
        projected_BND: Tensor = self.proj(self.norm(attended_BHNW.transpose(1, 2).flatten(2)))
        return projected_BND


class FeedForward(nn.Module):
    """A feed-forward expert: two layers with GELU between them.

    Args:
        width: Width D of the tokens.
        hidden: Width between the layers.
        inner_norm: Epsilon of a LayerNorm before the second layer (Sub-LN); None for no such norm.
    """

    def __init__(self, width: int, hidden: int, inner_norm: float | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.Identity() if inner_norm is None else nn.LayerNorm(hidden, eps=inner_norm)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Transform every token by itself, [B, N, D] to [B, N, D]."""
        transformed_BND: Tensor = self.fc2(self.norm(F.gelu(self.fc1(tokens_BND))))
        return transformed_BND


class Path(nn.Module):
    """One modality's way through a block: pre-norm attention, then pre-norm feed-forward expert.

    Where modalities share attention, their paths hold the same module: what a tuning method wraps inside it, it wraps for both.

    Args:
        norm1: Norm before attention.
        attn: Attention.
        norm2: Norm before the expert.
        mlp: The modality's expert.
    """

    def __init__(self, norm1: nn.Module, attn: nn.Module, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp

    def forward(self, tokens_BND: Tensor, seen: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            tokens_BND: [B, N, D].
            seen: Boolean [B, 1, N, N], as in `Attention`.

        Returns:
            [B, N, D].
        """
        attended_BND: Tensor = self.attn(self.norm1(tokens_BND), seen)
        tokens_BND = tokens_BND + attended_BND
        transformed_BND: Tensor = self.mlp(self.norm2(tokens_BND))
        return tokens_BND + transformed_BND


class Patches(nn.Module):
    """Embeds the patches of an image, with a class token in front.

    Args:
        width: Width D of the tokens.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        spare: Rows of the position table before the first that is used.
    """

    def __init__(self, width: int, image_size: int, patch_size: int, spare: int = 0) -> None:
        super().__init__()
        self.spare = spare
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(spare + 1 + (image_size // patch_size) ** 2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised images float32 [B, 3, S, S] as tokens [B, 1 + P, D]."""
        patches_BPD = self.proj(pixels).flatten(2).transpose(1, 2)
        cls_B1D = self.cls_token.to(patches_BPD.dtype).expand(patches_BPD.shape[0], -1, -1)
        return torch.cat([cls_B1D, patches_BPD], dim=1) + self.positions[self.spare :]


def attends(ids_BN: Tensor, pad_id: int) -> Tensor:
    """Mask padding.

    Args:
        ids_BN: Token ids, int64 [B, N].
        pad_id: Id of padding.

    Returns:
        Boolean [B, 1, N, N], true where a token (row) attends to another (column).
    """
    return (ids_BN != pad_id)[:, None, None].expand(-1, 1, ids_BN.shape[1], -1)


def run(paths: Iterable[nn.Module], tokens_BND: Tensor, seen: Tensor | None = None) -> Tensor:
    """Run tokens through blocks.

    Args:
        paths: One modality's way through each block.
        tokens_BND: [B, N, D].
        seen: Boolean [B, 1, N, N], as in `Attention`.

    Returns:
        [B, N, D].
    """
    for path in paths:
        tokens_BND = path(tokens_BND, seen)
    return tokens_BND


def initialise(module: nn.Module) -> None:
    """Set initial values that suit any width, for `nn.Module.apply`: Xavier uniform, embeddings normal(0, 0.02), biases zero.

    Args:
        module: A module, whose own parameters are set.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, Patches):
        nn.init.normal_(module.positions, std=0.02)
        nn.init.normal_(module.cls_token, std=0.02)
