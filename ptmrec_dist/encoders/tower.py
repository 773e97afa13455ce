"""A tower: one modality of an encoder, run by its model's own forward, and what tuning needs to know of its blocks.

Methods of tuning hook into blocks or wrap modules inside them; inputs still pass through the model's own forward.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptmrec_dist.errors import UserError, in_brief


@dataclass(frozen=True)
class Layout:
    """Structure of a stack of transformer blocks, as tuning needs it; paths are relative to a block."""

    width: int
    """Width D of the tokens."""
    ends: tuple[str, ...]
    """Paths of the modules that end attention and MLP, before each joins the residual stream; none where they are not known."""
    promptable: bool = True
    """Whether a block takes a sequence of any length."""
    prompts_at: int | None = None
    """Number of tokens that stand before the prompts; None puts prompts behind all tokens."""
    causal: bool = False
    """Whether a token sees only itself and the tokens before it."""
    closing_norm: str | None = None
    """Path of the norm whose output a block returns; None where blocks normalise what they read instead (pre-norm)."""


class TokenStates(NamedTuple):
    """What an encoder makes of each token of a batch of inputs."""

    states: Tensor
    """[B, N, D]."""
    mask: Tensor
    """Boolean [B, N]; false for padding that no feature depends on."""


class Tower(Protocol):
    """One modality of an encoder."""

    kind: str
    """The model's name for it, for messages."""
    out_width: int
    """Width of its features."""
    blocks: Sequence[nn.Module]
    """Its blocks or stages from first to last; none where they are not known."""
    layout: Layout | None
    """Structure of its blocks; None where they take no sequence of tokens, or are not known."""
    example: Tensor
    """One valid input, [1, ...]."""

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the model's own forward.

        Args:
            inputs: Images uint8 [B, 3, H, W] or token ids int64 [B, N].

        Returns:
            Features [B, out_width], not normalised.
        """

    def token_states(self, inputs: Tensor) -> TokenStates | None:
        """Run the model's own forward, for the states of all tokens.

        They are those after the last block, and after the model's final norm where it is applied to the sequence; not where a
        model pools first and applies the norm to the pooled row.

        Args:
            inputs: What `encode` takes.

        Returns:
            Not normalised to length 1, without prompts; None where the model has no sequence of tokens.
        """

    def trimmed(self, inputs: Tensor) -> Tensor:
        """Cut trailing columns of padding, if that does not change features.

        Args:
            inputs: What `encode` takes.

        Returns:
            Token ids int64 [B, N'] with N' at most N; other inputs unchanged.
        """

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return its weights.

        Returns:
            All parameters that its features depend on.
        """


def output_width(option: str, tower: Tower) -> int:
    """Run a tower once, so that one that fails is refused before anything is read.

    Args:
        option: The setting that names its model, for the message.
        tower: The tower.

    Returns:
        Width of its features.

    Raises:
        UserError: It fails, or does not give one row per input.
    """
    try:
        with torch.no_grad():
            shape = tower.encode(tower.example).shape
    except Exception as error:  # a model of any library
        raise UserError(
            f"{option}: its {tower.kind} does not run ({in_brief(error)}); check its configuration"
        ) from error
    if len(shape) != 2:
        raise UserError(
            f"{option}: its {tower.kind} gives {tuple(shape)} for one input, expected one row; choose another"
        )
    return int(shape[-1])


def call_inner_modules(towers: Mapping[str, Tower]) -> None:
    """Keep torch's own blocks from their fused path, which reads the weights of the modules inside them and calls none.

    What a tuning method wraps would be passed over. The path is not taken by a block that has a hook.

    Args:
        towers: Modality to tower.
    """
    blocks = {module for tower in towers.values() for block in tower.blocks for module in block.modules()}
    for block in blocks:
        if isinstance(block, nn.TransformerEncoderLayer):
            block.register_forward_pre_hook(_unchanged)


def _unchanged(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A hook that does nothing."""


def checkpoint_blocks(towers: Mapping[str, Tower]) -> None:
    """Recompute every block in the backward pass instead of keeping its activations.

    Args:
        towers: Modality to tower.

    Raises:
        UserError: A tower whose blocks are not known.
    """
    for modality, tower in towers.items():
        if not len(tower.blocks):
            raise UserError(
                f"tuning.gradient_checkpointing: the blocks of the {modality} tower ({tower.kind}) are not known; turn it off"
            )
    for tower in towers.values():
        for block in tower.blocks:
            # Hooks on the block itself, which insert prompts or gather parameters, stay outside and run once.
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
