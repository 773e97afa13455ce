"""Settings of the commands that use what was trained, and of the demo."""

from dataclasses import dataclass
from pathlib import Path

from ptmrec_dist.config.common import require


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Rank every item for every user with a finished run and write its metrics.json anew."""

    run: Path
    """Run folder of stage 1 or stage 2."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a page with tables and figures that compares finished runs on the same packed data set."""

    runs: str
    """Run folders, separated by commas, the baseline first; `*` and `?` stand for any names. Folders whose names differ only
    in `-seedN` at their end are one setting over seeds."""
    out: Path = Path("report.html")
    """The page; one that is there is replaced."""
    title: str = "Runs compared"
    """Its heading."""


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Register a finished run as a model that recommends."""

    run: Path
    """Run folder of stage 1 or stage 2."""
    name: str
    """Name in the model registry."""
    alias: str = "candidate"
    """Alias that the new version gets."""


@dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """Print recommendations of a registered model."""

    model: str
    """Model URI: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder."""
    users: str
    """User ids, separated by commas."""
    top_k: int = 10
    """Items a user."""
    exclude_seen: bool = True
    """Leave out what the user took in training."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way in small: draw a shop, train a tiny CLIP, both stages, register, recommend, report."""

    out: Path = Path("demo")
    """Folder for everything that the demo makes; `report.html` is in it."""
    seed: int = 0
    """One seed gives one result."""
