"""Adapters: a small bottleneck after the attention and after the MLP of every layer, trained while the layer is frozen.

Houlsby et al., Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751: the bottleneck is applied to the output of a
sublayer, before that is added to the residual stream. Its output starts at zero, so that features are unchanged at first.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config import AdapterConfig
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.encoders.tuning.base import TuningMethod


class Bottleneck(nn.Module):
    """`h + up(gelu(down(h)))`.

    Args:
        width: Width D of the tokens.
        bottleneck: Width between `down` and `up`.
        generator: Source of the initial values of `down`, normal(0, 0.02); `up` and the biases start at zero.
    """

    def __init__(self, width: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=0.02, generator=generator)
        for start_at_zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start_at_zero)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Add the output of the bottleneck to the tokens, [B, N, D] to [B, N, D]."""
        added_BND: Tensor = self.up(F.gelu(self.down(tokens_BND)))
        return tokens_BND + added_BND


class Adapters(TuningMethod[AdapterConfig]):
    """Two bottlenecks in every block of every tower, after the last module of each sublayer."""

    needs = "known ends of attention and MLP"

    @classmethod
    def fits(cls, tower: Tower) -> bool:
        """Whether the ends of the sublayers are known."""
        return tower.layout is not None and len(tower.layout.ends) > 0

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        """Attach the bottlenecks."""
        wrapped: set[nn.Module] = set()
        for tower in towers.values():
            assert tower.layout is not None
            for block, end in product(tower.blocks, tower.layout.ends):
                module = block.get_submodule(end)
                if module not in wrapped:
                    bottleneck = Bottleneck(tower.layout.width, self.settings.bottleneck, generator)
                    wrapped.add(adapted := nn.Sequential(module, bottleneck))
                    block.set_submodule(end, adapted)
        return {}
