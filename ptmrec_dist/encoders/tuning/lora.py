"""LoRA: a trained low-rank update beside every linear layer and 1 x 1 convolution of a block, by the `peft` library.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685: W x becomes W x + (alpha / rank) B A x,
with B zero at first, so that features are unchanged at first.

open_clip's attention is torch's, whose query, key and value projections are one fused weight that no layer of its own
applies. peft would add the update to that weight before each forward pass and subtract it afterwards, which leaves
rounding errors in a frozen weight and bypasses DeepSpeed. So the attention is replaced first: the same weights, applied
by two Linear layers, which peft adapts like any other.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, whose weight is transposed

from ptmrec_dist.config import LoraConfig
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.encoders.tuning.attention import OpenAttention, opened
from ptmrec_dist.encoders.tuning.base import TuningMethod
from ptmrec_dist.errors import UserError


class Lora(TuningMethod[LoraConfig]):
    """A low-rank update of every linear layer and 1 x 1 convolution of every block."""

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Attach the updates; a layer narrower than the rank gets one of its own width, at the same scale.

        Args:
            towers: Modality to tower.
            generator: Source of the initial values of A.

        Returns:
            Nothing: updates are modules of the towers.

        Raises:
            UserError: A tower without such layers, narrower than the rank, or whose features do not depend on an update.
        """
        import peft  # imported here, because it takes seconds

        for modality, tower in towers.items():
            self._check(modality, tower)
        stack = nn.ModuleList(block for tower in towers.values() for block in tower.blocks)
        for block in stack:
            _open(block)
        rank, scale = self.settings.rank, self.settings.alpha / self.settings.rank
        narrow = {name: width for name, width in _widths(stack).items() if width < rank}
        wanted = peft.LoraConfig(
            r=rank,
            lora_alpha=self.settings.alpha,
            target_modules=list(_widths(stack)),
            rank_pattern=narrow,
            alpha_pattern={name: scale * width for name, width in narrow.items()},
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out by itself which weights are transposed
            peft.inject_adapter_in_model(wanted, stack)
        for _, _, update in _updates(towers):
            nn.init.kaiming_uniform_(update.lora_A["default"].weight, a=5**0.5, generator=generator)
        for modality, tower in towers.items():
            self._require_effect(modality, tower, towers)
        return {}

    def merge(self, towers: Mapping[str, Tower]) -> None:
        """Merge every update into its weight and restore the towers' original attention; does nothing without updates.

        Args:
            towers: Modality to tower.

        Raises:
            ValueError: A merged weight is not finite.
        """
        for parent, name, update in list(_updates(towers)):
            update.merge(safe_merge=True)
            setattr(parent, name, update.get_base_layer())
        for tower in towers.values():
            for block in tower.blocks:
                attention = getattr(block, "attn", None)
                if isinstance(attention, OpenAttention):
                    (block.attn,) = attention.fused

    def _check(self, modality: str, tower: Tower) -> None:
        for name, layer in (named for block in tower.blocks for named in block.named_modules()):
            if isinstance(layer, nn.MultiheadAttention) and name != "attn":
                raise UserError(
                    f"tuning.method: got lora, but the {modality} tower ({tower.kind}) has torch's MultiheadAttention at "
                    f"{name} of its blocks, expected it at attn, as in open_clip's; choose another method"
                )
        for attention in (block.attn for block in tower.blocks if _is_fused(block)):
            opened(attention)  # refuses what it does not know
        widths = [width for block in tower.blocks for width in _widths(block).values()]
        if not widths:
            raise UserError(
                f"tuning.method: got lora, but the blocks of the {modality} tower ({tower.kind}) have no linear layers and no "
                "1 x 1 convolutions; choose another method"
            )
        if self.settings.rank > max(widths):
            raise UserError(
                f"lora.rank: got {self.settings.rank}, but the {modality} tower is only {max(widths)} wide; use less"
            )

    def _require_effect(self, modality: str, tower: Tower, towers: Mapping[str, Tower]) -> None:
        """Refuse a tower with an update on which its features do not depend: layers whose weight something else applies."""
        names, updates = zip(*((name, update) for _, name, update in _updates({modality: tower})), strict=True)
        with torch.enable_grad():
            features_1D = tower.encode(tower.example.to(updates[0].weight.device))
            ups = [update.lora_B["default"].weight for update in updates]
            gradients = torch.autograd.grad(features_1D.sum(), ups, allow_unused=True)
        idle = {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
        if idle:
            self.merge(towers)
            raise UserError(
                f"tuning.method: got lora, but the features of the {modality} tower ({tower.kind}) do not depend on an "
                f"update of {', '.join(sorted(idle))}; choose another method"
            )


def _widths(module: nn.Module) -> dict[str, int]:
    """Every layer that gets an update, and its smaller width."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            found[name] = min(layer.weight.shape)
        elif isinstance(layer, nn.MultiheadAttention):  # before it is opened
            found[name] = layer.embed_dim
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
            found[name] = min(layer.in_channels, layer.out_channels)
    return found


def _updates(towers: Mapping[str, Tower]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every updated layer once: its parent module, its name there, and itself."""
    seen = set()
    for tower in towers.values():
        for block in tower.blocks:
            for parent in block.modules():
                for name, child in parent.named_children():
                    if hasattr(child, "lora_A") and child not in seen:
                        seen.add(child)
                        yield parent, name, child


def _is_fused(block: nn.Module) -> bool:
    return hasattr(getattr(block, "attn", None), "in_proj_weight")


def _open(block: nn.Module) -> None:
    """Make the projections separate layers, where attention would apply their weights itself."""
    attention: Any = getattr(block, "attn", None)
    if _is_fused(block):
        block.attn = opened(attention)
    elif getattr(attention, "qkv", None) is not None and hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True  # timm's Eva otherwise applies the weight together with a bias of its own
