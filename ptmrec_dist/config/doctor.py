"""Settings of `ptmrec doctor`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from ptmrec_dist.config.common import EncoderConfig, require
from ptmrec_dist.config.data import PackConfig, ReadsTables


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(ReadsTables):
    """Examine catalogues, packed data sets, features, runs, or this machine, and list what to fix before training.

    Exit code: 0 without findings or with notes alone, 1 with warnings, 2 with errors.
    """

    leading: ClassVar[str] = "paths"
    """Setting that the first words of the command line give."""

    paths: tuple[Path, ...] = ()
    """What to examine, before any option: folders with tables, with shards, with features, or of runs (`catalogue,runs`
    names two). Without any, and without --interactions, this machine."""
    interactions: Path | None = None
    """Interactions to examine, as `ptmrec pack` takes them."""
    encoder: EncoderConfig | None = None
    """Encoder that texts and images will be read by; with it, texts that it would cut and images that are too small are
    found, and its time is measured."""
    ranks: int = 1
    """Ranks that will train."""
    workers: int = 0
    """Loader processes of each rank."""
    dim: int = 64
    """Width of the recommender's embeddings, for the estimate of memory."""
    json: bool = False
    """Print JSON, with all examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.items is None or self.interactions is not None, "items", self.items, "--interactions with it")
        require(self.ranks >= 1, "ranks", self.ranks, "1 or more")
        require(self.workers >= 0, "workers", self.workers, "0 or more")
        require(self.dim >= 1, "dim", self.dim, "1 or more")

    def packing(self, interactions: Path, items: Path | None) -> PackConfig:
        """Return the settings with which `ptmrec pack` would read tables.

        Args:
            interactions: Table of interactions.
            items: Table of items, where there is one.

        Returns:
            Settings; nothing is written to their `out`.
        """
        same = {item.name: getattr(self, item.name) for item in fields(ReadsTables)}
        images = self.images if items is not None else None
        return PackConfig(
            **same | {"items": items, "images": images}, interactions=interactions, out=interactions.parent
        )
