"""Deep prompts: new vectors that join the tokens of the first blocks of a tower.

PTMRec (eq. 7 to 10) follows MaPLe (arXiv 2210.03117) without its coupling function: each tower has its own prompts. In
blocks 1..depth the outputs of the previous block's prompts are replaced by the block's own prompts; after `depth` they
are processed as ordinary tokens. A depth of 9 is nine blocks with their own prompts, the first included. They are removed
after the last block, so that the model pools its original tokens.

Blocks of CLIP normalise what they read, so that the scale of a prompt does not matter. Those of BERT read what the norm of the
block before returned, beside which vectors as small as initial prompts would hardly be seen: there, prompts pass through
the norm that ends their block, and have the scale of its tokens.

Legend: B batch, N tokens, S tokens and prompts, D width, L prompt vectors of a block, P prompted blocks.
"""

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config import PromptConfig
from ptmrec_dist.encoders.tower import Layout, Tower
from ptmrec_dist.encoders.tuning.base import TuningMethod, at_most_blocks
from ptmrec_dist.errors import UserError, in_brief

# Arguments of blocks that have a row or column for each token. Prompts have no position: no bias, no rotation.
_MASKS, _BIASES, _ROTATIONS = ("attn_mask", "attention_mask", "seen"), ("position_bias",), ("position_embeddings",)


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
        """Hook the prompts into the blocks of a tower, and run it once.

        Args:
            tower: The tower.

        Raises:
            UserError: The tower fails with prompts; it is left as it was.
        """
        handles = [
            block.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            for number, block in enumerate(tower.blocks)
        ]
        handles.append(tower.blocks[-1].register_forward_hook(self._leave))
        self._shift_rotations(tower, self.length)
        try:
            with torch.no_grad():
                tower.encode(tower.example.to(next(iter(tower.parameters())).device))
        except Exception as error:  # a model of any library
            for handle in handles:
                handle.remove()
            self._shift_rotations(tower, -self.length)
            raise UserError(
                f"tuning.method: got prompt, but {tower.kind} does not run with prompts ({in_brief(error)}); choose another "
                "method"
            ) from error

    def _shift_rotations(self, tower: Tower, by: int) -> None:
        """Count prompts among the leading tokens, to which timm's attention gives no rotary positions."""
        for block in tower.blocks:
            attention: Any = getattr(block, "attn", None)
            if hasattr(attention, "num_prefix_tokens"):
                attention.num_prefix_tokens += by

    def _enter(
        self, number: int, block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Insert a block's own prompts, and extend what it gets for each token."""
        tokens_BSD = inputs[0]
        if number < self.depth:
            content_BND = tokens_BSD if number == 0 else self._without(tokens_BSD)
            tokens_BSD = self._with(content_BND, self._normalised(block, self.vectors_PLD[number]))
        content = tokens_BSD.shape[1] - self.length
        names = list(signature(type(block).forward).parameters)[2:]  # after `self` and the tokens
        others = (self._extended(name, value, content) for name, value in zip(names, inputs[1:], strict=False))
        options = {name: self._extended(name, value, content) for name, value in options.items()}
        return (tokens_BSD, *others), options

    def _extended(self, name: str, value: Any, content: int) -> Any:
        """Extend an argument that describes the N tokens so that it describes tokens and prompts."""
        if name in _ROTATIONS and value is not None:
            return tuple(_led(part, self.length, fill) for part, fill in zip(value, (1.0, 0.0), strict=True))
        if not isinstance(value, Tensor) or value.shape[-1] != content:
            return value
        if name in _BIASES:
            return F.pad(value, (self.length, 0, self.length, 0))
        return self._widened(value) if name in _MASKS else value

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Remove the prompts after the last block."""
        if isinstance(output, tuple):
            return (self._without(output[0]), *output[1:])
        return self._without(output)

    def _normalised(self, block: nn.Module, prompts_LD: Tensor) -> Tensor:
        """Prompts at the scale of the tokens that a block reads."""
        norm = self.layout.closing_norm
        return prompts_LD if norm is None else block.get_submodule(norm)(prompts_LD)

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

    def _widened(self, mask: Tensor) -> Tensor:
        """Extend a mask [..., N or 1, N] (additive, or true where a token is attended to) to L leading prompts."""
        length, tokens = self.length, mask.shape[-1]
        seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, float("-inf"))
        lead = mask.shape[:-2]
        content = torch.cat([mask.new_full((*lead, mask.shape[-2], length), seen), mask], dim=-1)
        if mask.shape[-2] == 1 != tokens:  # one row for all tokens, which is that of prompts, too
            return content
        if self.layout.causal:
            ones = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
            own = mask.new_full((length, length), hidden).masked_fill(ones, seen).expand(*lead, -1, -1)
            others = mask.new_full((length, tokens), hidden).expand(*lead, -1, -1)
        else:  # prompts attend to all but padding, like any token
            own = mask.new_full((*lead, length, length), seen)
            others = mask[..., :1, :].expand(*lead, length, tokens)
        return torch.cat([torch.cat([own, others], dim=-1), content], dim=-2)


def _led(values_BND: Tensor, length: int, fill: float) -> Tensor:
    """Put L rows of one value before N rows."""
    leading = values_BND.new_full((*values_BND.shape[:-2], length, values_BND.shape[-1]), fill)
    return torch.cat([leading, values_BND], dim=-2)


class Prompts(TuningMethod[PromptConfig]):
    """New prompts in every tower."""

    needs = "sequence of tokens of any length"

    @classmethod
    def fits(cls, tower: Tower) -> bool:
        """Whether blocks take a sequence of any length."""
        return tower.layout is not None and tower.layout.promptable

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> dict[str, DeepPrompts]:
        """Attach prompts, and return them by modality; refuses a depth larger than a tower."""
        depth, attached = self.settings.depth, {}
        if depth != "all":
            at_most_blocks("prompt.depth", depth, towers, or_else=", or 'all'")
        for modality, tower in towers.items():
            assert tower.layout is not None
            blocks = len(tower.blocks) if depth == "all" else depth
            attached[modality] = DeepPrompts(blocks, self.settings.length, tower.layout, generator)
            attached[modality].hook(tower)
        return attached
