"""What a format is: how it is written, and how another library computes features from what was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder

Rows = dict[str, np.ndarray]
"""Modality to features, float32 [B, D]."""


class Format(Protocol):
    """A format of another library."""

    takes_attached: bool
    """Whether modules that tuning has attached to the model are part of what is written."""

    def modalities(self, encoder: Encoder) -> tuple[str, ...]:
        """Say what of an encoder the format can hold.

        Args:
            encoder: The encoder.

        Returns:
            Modalities; none if the encoder is another library's.
        """

    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write an encoder.

        Args:
            encoder: In eval mode, on the CPU.
            folder: Empty folder.

        Raises:
            UserError: A library is missing, or cannot represent the encoder.
        """

    def advice(self, encoder: Encoder) -> str | None:
        """Say what it takes to load what was written, besides the library's ordinary call.

        Args:
            encoder: The encoder.

        Returns:
            One line; None, by default, where it takes nothing.
        """
        return None

    def features(self, folder: Path, encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
        """Compute features with the other library, from the files alone.

        Args:
            folder: What `write` wrote.
            encoder: Its preprocessing, where the format holds none.
            images: B images.
            texts: B texts.

        Returns:
            Features of every modality that was written.
        """


def features_of(encoder: Encoder, images: Sequence[Image.Image], texts: list[str]) -> Rows:
    """Compute features with our encoder.

    Args:
        encoder: In eval mode, on the CPU.
        images: B images.
        texts: B texts.

    Returns:
        Features of its towers.
    """
    pixels, ids = inputs_of(encoder.backbone, images, texts)
    with torch.no_grad():
        return {modality: rows.numpy() for modality, rows in encoder.encode(pixels, ids).items()}


def inputs_of(backbone: Backbone, images: Sequence[Image.Image], texts: list[str]) -> tuple[Any, Any]:
    """Prepare inputs as an encoder takes them.

    Args:
        backbone: The encoder.
        images: B images.
        texts: B texts.

    Returns:
        uint8 [B, 3, H, W] and token ids int64 [B, N], None for a modality that it has not.
    """
    has = backbone.modalities
    pixels = torch.stack([backbone.load_image(image) for image in images]) if "image" in has else None
    return pixels, backbone.tokenize(texts) if "text" in has else None


def least_cosine(ours: np.ndarray, others: np.ndarray) -> float:
    """Compare two tables row by row.

    Args:
        ours: [B, D].
        others: [B, D].

    Returns:
        The smallest cosine of two rows; -1 for tables of unlike shapes.
    """
    if ours.shape != others.shape:
        return -1.0
    a, b = ours.astype(np.float64), others.astype(np.float64)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.nan_to_num(cosines, nan=-1.0).min())
