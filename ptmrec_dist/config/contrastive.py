"""Settings of the command that tunes an encoder on pairs of image and text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import EncoderConfig, require, require_seeds
from ptmrec_dist.config.tuned import TunesEncoder
from ptmrec_dist.config.tuning import TuningConfig


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TunesEncoder):
    """Fine-tune the encoder on the catalogue's own pairs of image and text; no interaction is read."""

    shards: Path
    """Packed data set; held-out cold items are not used."""
    encoder: EncoderConfig
    """Encoder to start from."""
    out: Path
    """Encoder folder to write, which `--encoder.model` takes. Started again with the same settings, an interrupted run
    resumes."""
    tuning: TuningConfig = field(default_factory=lambda: TuningConfig(method="full"))
    """Tuning method of the encoder."""
    batch_size: int = 256
    """Pairs per step, over all ranks; each is contrasted with all others of the step."""
    objectives: tuple[Literal["itc", "itm", "mlm"], ...] = ("itc",)
    """One or more (`itc,itm,mlm`). itc: image-text contrast; a VLMo also has itm: whether an image and a text match, with hard
    negatives sampled by the similarities of itc, and mlm: masked language modelling (weight 0.25)."""
    mask_rate: float = 0.15
    """Fraction of the words that mlm hides."""
    projection: int | None = None
    """Width of the common space into which new linear projections map the features of separate image and text encoders; by
    default 256. Other encoders have a common space."""
    projection_lr: float = 1e-3
    """Learning rate of these projections and of their temperature."""
    epochs: int = 5
    """Passes over the catalogue."""
    seed: int = 0
    """Seed of the new weights of the encoder and of the order of items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        require(self.projection is None or self.projection >= 1, "projection", self.projection, "1 or more")
        require(self.projection_lr >= 0, "projection_lr", self.projection_lr, "0 or more")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        named, given = set(self.objectives), ",".join(self.objectives)
        require(
            "itc" in named and len(named) == len(self.objectives), "objectives", given, "itc, alone or with itm or mlm"
        )
        together = self.tuning.method == "prompt" and named != {"itc"}
        require(
            not together, "objectives", given, "itc with prompts, which take no part in reading image and text together"
        )
        require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "a fraction in (0, 1)")
        require_seeds("seed", self.seed)
