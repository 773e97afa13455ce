"""Interface of encoders: a backbone with its towers, one per modality, each run by its model's own forward.

Feature extraction needs `encode` alone. Tuning needs the tower's blocks, where they are known: methods hook into them or
wrap modules inside them, and inputs still pass through the model's own forward.

Legend: B batch, N tokens, D width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptmrec_dist.errors import UserError


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


LARGEST_SCALE = 100.0
"""CLIP's bound of the inverse of the temperature."""


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


@dataclass(frozen=True)
class Backbone(ABC):
    """A frozen pretrained encoder and the preprocessing of its inputs; each source has its own kind."""

    model: nn.Module
    """All its weights, in eval mode, without trainable parameters."""
    fingerprint: str
    """sha256 over weights, configuration, preprocessing and tuned weights."""
    tuned: tuple[Path, ...] = field(default=(), kw_only=True)
    """Files of tuned weights that are part of it, in the order of tuning."""
    config_file: ClassVar[str]
    """What `save` writes that other folders do not have."""
    raw: bool = field(default=False, kw_only=True)
    """Whether features keep the length that the model gives them; by default they are scaled to length 1."""

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """What it has towers for, among `image` and `text`."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels to which the shorter side of an image is resized; 0 without an image tower."""

    @abstractmethod
    def load_image(self, image: Image.Image) -> Tensor:
        """Resize and crop an image as in the encoder's training.

        Normalisation is done on the device: bytes take a quarter of the bandwidth of floats.

        Args:
            image: An RGB image.

        Returns:
            uint8 [3, H, W].
        """

    @abstractmethod
    def tokenize(self, texts: list[str]) -> Tensor:
        """Convert texts to token ids.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N].
        """

    @abstractmethod
    def count_cut(self, texts: list[str]) -> int:
        """Count the texts that are longer than the encoder reads.

        Args:
            texts: B texts.

        Returns:
            How many of them lose their end.
        """

    @abstractmethod
    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality.

        Args:
            modality: `image` or `text`.

        Returns:
            The tower, run by the model's own forward.
        """

    def projected(self, width: int | None, generator: torch.Generator) -> "Backbone":
        """Give an encoder without a common space of images and texts new projections into one.

        Args:
            width: Width of the common space; None leaves the choice to the encoder.
            generator: Source of the initial weights.

        Returns:
            An encoder with a common space; by default this one, which has one.

        Raises:
            UserError: A width is given, but there is nothing to project.
        """
        if width is not None:
            raise UserError(
                f"projection: got {width}, but this encoder has a common space already; leave --projection out"
            )
        return self

    @property
    def projections(self) -> Sequence[nn.Parameter]:
        """Weights of what `projected` gave it, among its heads; by default none."""
        return []

    def heads(self, objective: str) -> Sequence[nn.Parameter]:
        """Return what an objective on pairs of image and text trains besides what features depend on.

        Args:
            objective: `itc`, `itm` or `mlm`.

        Returns:
            Parameters; by default contrast needs none.

        Raises:
            UserError: The encoder cannot be trained on it.
        """
        if objective != "itc":
            raise UserError(
                f"objectives: got {objective}, but this encoder does not read an image and a text together; expected itc"
            )
        return []

    def contrasted(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what image-text contrast compares.

        Args:
            features: Of both modalities, of length 1, [B, D] each.

        Returns:
            Rows of images and of texts of length 1, [B, D'] each, and the inverse of the temperature.
        """
        scale = cast(Tensor, self.model.logit_scale)
        return features["image"], features["text"], scale.exp().clamp(max=LARGEST_SCALE)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as a folder that `load_backbone` reads.

        Args:
            folder: Existing folder.
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
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{option}: its {tower.kind} does not run ({reason}); check its configuration") from error
    if len(shape) != 2:
        raise UserError(
            f"{option}: its {tower.kind} gives {tuple(shape)} for one input, expected one row; choose another"
        )
    return int(shape[-1])


def weights_digest(model: nn.Module, settings: str) -> str:
    """Compute the digest of a model.

    Args:
        model: The model, on the CPU.
        settings: What else its features depend on.

    Returns:
        sha256 over settings, and names and values of parameters and buffers.
    """
    digest = hashlib.sha256(settings.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
