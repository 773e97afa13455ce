"""The encoder that will read a catalogue: which texts it cuts, and how long it takes.

Legend: B batch, H height, W width.
"""

import time
from dataclasses import dataclass
from functools import cached_property

import torch

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone

_TEXTS = 1024
"""Texts that are tokenized at once."""
_BATCH = 8
"""Items that are encoded to measure the time of one."""


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder on the CPU."""

    encoder: Encoder
    """The encoder."""

    @classmethod
    def load(cls, settings: EncoderConfig) -> "LoadedEncoder":
        """Load an encoder.

        Args:
            settings: Where it is.

        Returns:
            The encoder.

        Raises:
            UserError: It cannot be loaded.
        """
        backbone = load_backbone(settings)
        return cls(Encoder(backbone, backbone.modalities, "fp32").eval())

    @property
    def image_size(self) -> int:
        """Pixels of the images that it takes; 0 without an image tower."""
        return self.encoder.backbone.image_size

    @property
    def widths(self) -> dict[str, int]:
        """Modality to width of its features."""
        return self.encoder.widths

    def count_cut(self, texts: list[str]) -> int:
        """Count the texts that it would cut.

        Args:
            texts: Texts, some empty.

        Returns:
            How many are longer than it reads; 0 without a text tower.
        """
        if "text" not in self.widths:
            return 0
        starts = range(0, len(texts), _TEXTS)
        return sum(self.encoder.backbone.tokenized(texts[start : start + _TEXTS])[1] for start in starts)

    @cached_property
    def seconds_an_item(self) -> float:
        """Time of encoding one item on this machine's CPU, as measured on one batch."""
        size = self.image_size
        images_B3HW = torch.zeros(_BATCH, 3, size, size, dtype=torch.uint8) if "image" in self.widths else None
        tokens = self.encoder.tokenize(["some words of a text"] * _BATCH) if "text" in self.widths else None
        with torch.no_grad():
            for _ in range(2):  # the first call also allocates and compiles
                start = time.perf_counter()
                self.encoder.encode(images_B3HW, tokens)
        return (time.perf_counter() - start) / _BATCH
