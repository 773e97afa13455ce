"""Hyper-parameters of sequence recommenders that know items by their images and texts alone."""

from dataclasses import dataclass
from typing import Literal

from ptmrec_dist.config.common import require
from ptmrec_dist.config.sequences import SASRecConfig
from ptmrec_dist.config.table import bounded


@dataclass(frozen=True, kw_only=True)
class MoRecConfig(SASRecConfig):
    """Hyper-parameters of MoRec."""


@dataclass(frozen=True, kw_only=True)
class PMMRecConfig(SASRecConfig):
    """Hyper-parameters of PMMRec; its losses but the first take no part in fine-tuning (`none`)."""

    length: int = bounded(20, 1)
    """Most recent items of a user that are read."""
    fusion_heads: int = bounded(4, 1)
    """Attention heads of the fusion; they divide the width. 12 in the paper, at width 768."""
    pooling: Literal["mean", "first"] = "mean"
    """What an image or a text alone is represented by: the mean of its tokens, as in the authors' code, or the first one, as
    in the paper: for encoders with a class token."""
    contrast: Literal["nicl", "icl", "vcl", "none"] = "nicl"
    """Contrast of images and texts: vcl: with other items' of the other modality; icl: of both; nicl: the next item's are
    positives, too. With one modality there is none."""
    nicl_denominator: Literal["complete", "printed"] = "complete"
    """complete: numerator and negatives, so that the loss is that of a probability; printed: without the next item."""
    temperature: float = bounded(1.0, 0.01)
    """Temperature of the contrast of images and texts, whose vectors have length 1; 1 in the paper."""
    nid: Literal["softmax", "relu", "none"] = "softmax"
    """Noised item detection: cross-entropy of the classifier's outputs, or, as in the paper, of their positive part."""
    rcl: Literal["dot", "cosine", "none"] = "dot"
    """Contrast of noised histories: dot products divided by the square root of the width, or cosines by `rcl_temperature`."""
    rcl_weight: float = bounded(0.02, 0)
    """Weight of that contrast. It is 1 in the paper; small data then taught next to nothing about the next item."""
    rcl_temperature: float = bounded(0.07, 0.01)
    """Temperature of the contrast of noised histories where it compares cosines."""
    shuffled: float = bounded(0.15, 0, 1)
    """Fraction of a history's items that noise shuffles."""
    replaced: float = bounded(0.05, 0, 1)
    """Fraction of a history's items that noise replaces by items of other users."""
    image_width: int = bounded(0, 0)
    """Width of the image encoder's tokens; 0: that of the features. Training with the encoder sets it."""
    text_width: int = bounded(0, 0)
    """Width of the text encoder's tokens; 0: that of the features. Training with the encoder sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of --{self.group}.dim {self.dim}"
        require(self.dim % self.fusion_heads == 0, f"{self.group}.fusion_heads", self.fusion_heads, expected)
        total, most = self.shuffled + self.replaced, f"at most {1 - self.shuffled:g}, the rest of the items"
        require(total <= 1, f"{self.group}.replaced", self.replaced, most)

    @property
    def noises(self) -> bool:
        """Whether some loss reads noised histories."""
        return self.nid != "none" or self.rcl != "none"
