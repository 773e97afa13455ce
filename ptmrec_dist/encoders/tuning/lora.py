"""LoRA: a trained low-rank update beside every projection of attention and MLP, by the `peft` library.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685: W x becomes W x + (alpha / rank) B A x,
with B zero at first, so that features are unchanged at first.

open_clip's attention is torch's, whose query, key and value projections are one fused weight that no layer of its own
applies. peft would add the update to that weight before each forward pass and subtract it afterwards, which leaves
rounding errors in a frozen weight and bypasses DeepSpeed. So the attention is replaced first: the same weights, applied
by two Linear layers, which peft adapts like any other.

Legend: B batch, N tokens, D width, H heads, W width of a head, R rank.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config import LoraConfig
from ptmrec_dist.encoders.base import Layout, Tower, require_layout
from ptmrec_dist.encoders.tuning.base import TuningMethod
from ptmrec_dist.errors import UserError


class OpenAttention(nn.Module):
    """Self-attention with the weights of `nn.MultiheadAttention`, with its fused projection as a separate layer.

    Args:
        fused: Attention with one weight for query, key and value; its parameters are shared, not copied.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.fused = (fused,)  # in a tuple, so that its parameters are not registered twice
        self.heads = fused.num_heads
        width = fused.embed_dim
        self.in_proj = nn.Linear(width, 3 * width, device="meta")
        self.in_proj.weight, self.in_proj.bias = fused.in_proj_weight, fused.in_proj_bias
        self.out_proj: nn.Module = fused.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Apply attention, called as in open_clip's blocks: query, key and value are the same tokens [B, N, D]."""
        projected_3BHNW = self.in_proj(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query_BHNW, key_BHNW, value_BHNW = projected_3BHNW
        if (
            attn_mask is not None and attn_mask.ndim == 3
        ):  # torch's attention takes a mask for each head as [B * H, N, N]
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        attended_BHNW = F.scaled_dot_product_attention(query_BHNW, key_BHNW, value_BHNW, attn_mask)
        return self.out_proj(attended_BHNW.transpose(1, 2).flatten(2)), None


class Lora(TuningMethod[LoraConfig]):
    """A low-rank update of every projection of every block."""

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Attach the updates.

        Args:
            towers: Modality to tower.
            generator: Source of the initial values of A.

        Returns:
            Nothing: updates are modules of the towers.

        Raises:
            UserError: A tower without known transformer blocks, with attention of another kind, narrower than the rank, or
                whose features do not depend on an update.
        """
        import peft  # imported here, because it takes seconds

        layouts = require_layout("lora", towers)
        for modality, tower in towers.items():
            _check(modality, tower, layouts[modality], self.settings)
        for modality, tower in towers.items():
            for block in tower.blocks:
                _open(block)
            names = list(layouts[modality].projections)
            wanted = peft.LoraConfig(r=self.settings.rank, lora_alpha=self.settings.alpha, target_modules=names)
            peft.inject_adapter_in_model(wanted, nn.ModuleList(tower.blocks))
            for _, _, update in _updates(tower):
                nn.init.kaiming_uniform_(update.lora_A["default"].weight, a=5**0.5, generator=generator)
        for modality, tower in towers.items():
            idle = _idle(tower)
            if idle:
                self.merge(towers)
                raise UserError(
                    f"tuning.method: got lora, but the features of the {modality} tower ({tower.kind}) do not depend on an "
                    f"update of {', '.join(sorted(idle))}; choose another method"
                )
        return {}

    def merge(self, towers: Mapping[str, Tower]) -> None:
        """Merge every update into its weight and restore the towers' original attention; does nothing without updates.

        Args:
            towers: Modality to tower.

        Raises:
            ValueError: A merged weight is not finite.
        """
        for tower in towers.values():
            for parent, name, update in list(_updates(tower)):
                update.merge(safe_merge=True)
                setattr(parent, name, update.get_base_layer())
            for block in tower.blocks:
                attention = getattr(block, "attn", None)
                if isinstance(attention, OpenAttention):
                    (block.attn,) = attention.fused


def _updates(tower: Tower) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every adapted projection: its parent module, its name there, and itself."""
    for block in tower.blocks:
        for parent in block.modules():
            for name, child in parent.named_children():
                if hasattr(child, "lora_A"):
                    yield parent, name, child


def _open(block: nn.Module) -> None:
    """Make the projections separate layers, where attention would apply their weights functionally."""
    attention: Any = getattr(block, "attn", None)
    if isinstance(attention, nn.MultiheadAttention):
        block.attn = OpenAttention(attention)
    elif getattr(attention, "qkv", None) is not None and hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True  # timm's Eva otherwise applies the weight together with a bias of its own


def _idle(tower: Tower) -> set[str]:
    """Names of projections whose update does not affect features: those for which the gradient of B is zero."""
    names, updates = zip(*((name, update) for _, name, update in _updates(tower)), strict=True)
    with torch.enable_grad():
        features_1D = tower.encode(tower.example.to(updates[0].weight.device))
        weights_D = torch.linspace(-1, 1, features_1D.shape[1], device=features_1D.device)
        ups = [update.lora_B["default"].weight for update in updates]
        gradients = torch.autograd.grad((features_1D * weights_D).sum(), ups, allow_unused=True)
    return {
        name for name, gradient in zip(names, gradients, strict=True) if gradient is None or not gradient.any().item()
    }


def _check(modality: str, tower: Tower, layout: Layout, settings: LoraConfig) -> None:
    attention: Any = getattr(tower.blocks[0], "attn", None)
    fused = isinstance(attention, nn.MultiheadAttention)
    if hasattr(attention, "in_proj_weight") and (
        not fused or attention.in_proj_weight is None or not attention.batch_first
    ):
        raise UserError(
            f"tuning.method: lora cannot be attached to the {modality} tower, whose attention is {type(attention).__name__}; "
            "expected torch's MultiheadAttention, choose another method"
        )
    if settings.rank > layout.width:
        raise UserError(
            f"lora.rank: got {settings.rank}, but the {modality} tower is only {layout.width} wide; use less"
        )
