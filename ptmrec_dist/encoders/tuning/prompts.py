"""Deep prompts: new vectors that join the tokens of the first blocks of a tower.

PTMRec (eq. 7 to 10) follows MaPLe (arXiv 2210.03117) without its coupling function: each tower has its own prompts. In
blocks 1..depth the outputs of the previous block's prompts are replaced by the block's own prompts; after `depth` they
are processed as ordinary tokens. A depth of 9 is nine blocks with their own prompts, the first included. They are removed
after the last block, so that the model pools its original tokens.

Legend: B batch, N tokens, S tokens and prompts, D width, L prompt vectors of a block, P prompted blocks.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ptmrec_dist.config import PromptConfig
from ptmrec_dist.encoders.base import Layout, Tower, at_most_layers, require_layout
from ptmrec_dist.encoders.tuning.base import TuningMethod


class DeepPrompts(nn.Module):
    """The prompt vectors of one tower, inserted into its blocks by hooks.

    Args:
        depth: Prompted blocks P.
        length: Prompt vectors of a block L.
        layout: Structure of the blocks.
        generator: Source of the initial normal(0, 0.02) values.
    """

    def __init__(self, depth: int, length: int, layout: Layout, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.depth, self.length, self.layout = depth, length, layout
        self.vectors_PLD = nn.Parameter(torch.empty(depth, length, layout.width).normal_(0, 0.02, generator=generator))

    def hook(self, tower: Tower) -> None:
        """Hook the prompts into the blocks of a tower.

        Args:
            tower: The tower.
        """
        for number, block in enumerate(tower.blocks):
            block.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            attention: Any = getattr(block, "attn", None)
            if hasattr(attention, "num_prefix_tokens"):  # leading tokens without rotary positions
                attention.num_prefix_tokens += self.length
        tower.blocks[-1].register_forward_hook(self._leave)

    def _enter(
        self, number: int, block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Insert a block's own prompts, and widen the mask so that tokens attend to them."""
        tokens_BSD = inputs[0]
        if number < self.depth:
            content_BND = tokens_BSD if number == 0 else self._without(tokens_BSD)
            tokens_BSD = self._with(content_BND, self.vectors_PLD[number])
        if self.layout.mask in options:
            options = {**options, self.layout.mask: self._widened(options[self.layout.mask])}
            return (tokens_BSD, *inputs[1:]), options
        return (tokens_BSD, *map(self._widened, inputs[1:2]), *inputs[2:]), options

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Remove the prompts after the last block."""
        if isinstance(output, tuple):
            return (self._without(output[0]), *output[1:])
        return self._without(output)

    def _with(self, content_BND: Tensor, prompts_LD: Tensor) -> Tensor:
        prompts_BLD = prompts_LD.expand(content_BND.shape[0], -1, -1).to(content_BND.dtype)
        at = content_BND.shape[1] if self.layout.prompts_at is None else self.layout.prompts_at
        before, behind = content_BND[:, :at], content_BND[:, at:]
        return torch.cat([part for part in (before, prompts_BLD, behind) if part.shape[1]], dim=1)

    def _without(self, tokens_BSD: Tensor) -> Tensor:
        behind_all = tokens_BSD.shape[1] - self.length
        at = behind_all if self.layout.prompts_at is None else self.layout.prompts_at
        if at == behind_all:
            return tokens_BSD[:, :at]
        if at == 0:
            return tokens_BSD[:, self.length :]
        return torch.cat([tokens_BSD[:, :at], tokens_BSD[:, at + self.length :]], dim=1)

    def _widened(self, mask: Tensor | None) -> Tensor | None:
        """Extend a mask [..., N, N] (additive, or true where a token is attended to) to L leading prompts: [..., S, S]."""
        if mask is None:
            return None
        length, tokens = self.length, mask.shape[-1]
        seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, float("-inf"))
        lead = mask.shape[:-2]
        if self.layout.causal:
            ones = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
            own = mask.new_full((length, length), hidden).masked_fill(ones, seen).expand(*lead, -1, -1)
            others = mask.new_full((length, tokens), hidden).expand(*lead, -1, -1)
        else:  # prompts attend to all but padding, like any token
            own = mask.new_full((*lead, length, length), seen)
            others = mask[..., :1, :].expand(*lead, length, tokens)
        prompts = torch.cat([own, others], dim=-1)
        content = torch.cat([mask.new_full((*lead, mask.shape[-2], length), seen), mask], dim=-1)
        return torch.cat([prompts, content], dim=-2)


class Prompts(TuningMethod[PromptConfig]):
    """New prompts in every tower."""

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> dict[str, DeepPrompts]:
        """Attach prompts, and return them by modality; refuses a tower that does not support them, or has fewer blocks."""
        layouts = require_layout("prompt", towers, promptable=True)
        depth, attached = self.settings.depth, {}
        if depth != "all":
            at_most_layers("prompt.depth", depth, towers, or_else=", or 'all'")
        for modality, tower in towers.items():
            blocks = len(tower.blocks) if depth == "all" else depth
            attached[modality] = DeepPrompts(blocks, self.settings.length, layouts[modality], generator)
            attached[modality].hook(tower)
        return attached
