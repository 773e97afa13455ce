"""Interface of encoders: a backbone, its towers, one per modality, and the preprocessing of their inputs.

Legend: B batch, N tokens, D width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.errors import UserError

LARGEST_SCALE = 100.0
"""CLIP's bound of the inverse of the temperature."""


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
    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        """Convert texts to token ids, and count those that are longer than the encoder reads.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N], and how many texts lose their end.
        """

    def tokenize(self, texts: list[str]) -> Tensor:
        """Convert texts to token ids.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N].
        """
        return self.tokenized(texts)[0]

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
