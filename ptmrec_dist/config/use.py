"""Settings of the commands that use trained models, and of the demo."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import (
    ReadsRun,
    check_alias,
    check_model_name,
    require,
    require_device,
    require_processes,
    require_seeds,
)
from ptmrec_dist.config.data import CatalogueColumnsConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ReadsRun):
    """Compute the metrics of a finished run again, by full ranking, compare with popularity, and rewrite metrics.json."""

    run: Path
    """Run folder of stage 1, stage 2, joint training or a refit."""
    cold_below: int | None = None
    """Also measure cold start, into `cold_start.json`: all items are ranked after every prefix of a user's whole sequence that
    an item with fewer training interactions than this follows (10 in PMMRec). `all` are all such rows, as in the paper,
    `held_out` those whose target was not trained on, `new` those whose target has no training interaction."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""

    def __post_init__(self) -> None:
        require(self.cold_below is None or self.cold_below >= 1, "cold_below", self.cold_below, "1 or more")
        require_device(self.device)


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ReadsRun):
    """Write a page with tables and figures that compares finished runs on the same packed data set."""

    runs: str
    """Run folders, separated by commas, the baseline first; `*` and `?` stand for any names. Folders whose names differ only
    in `-seedN` at their end are seeds of one setting."""
    out: Path = Path("report.html")
    """Page to write; an existing one is replaced."""
    title: str = "Runs compared"
    """Its heading."""


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(ReadsRun):
    """Register a finished run as a model that recommends."""

    run: Path
    """Run folder of stage 1, stage 2, joint training or a refit."""
    name: str
    """Name in the model registry."""
    alias: str = "candidate"
    """Alias that the new version gets; `champion` replaces the champion without a comparison."""
    index: Literal["exact", "faiss"] = "exact"
    """Retrieval of items for a user: exact scores all; for more than a million items a FAISS index finds most of the best."""

    def __post_init__(self) -> None:
        check_model_name(self.name)
        check_alias(self.alias)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Conditions on a version's lists besides accuracy, as measured on validation at registration; by default none."""

    min_coverage: float | None = None
    """Smallest fraction of the items that occurs in some list."""
    max_gini: float | None = None
    """Largest Gini coefficient of how often items are recommended: 0 equally often, 1 all the same item."""
    min_novelty: float | None = None
    """Smallest mean self-information of the recommended items, in bits: 3 where an item was taken by an eighth of the users."""
    max_popularity_lift: float | None = None
    """Largest lift of the mean popularity of recommended items over that of taken ones: 0.5 is half as popular again."""
    min_diversity: float | None = None
    """Smallest mean distance (1 - cosine of features) of two items of a list."""
    max_group_loss: float | None = None
    """Largest loss of Recall@20 of any third of the users or of the items, by their training interactions, as a fraction of the
    champion's."""

    def __post_init__(self) -> None:
        for name in ("min_coverage", "max_gini", "max_group_loss"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"gate.{name}", value, "a fraction in [0, 1]")
        for item in fields(self):
            value = getattr(self, item.name)
            require(value is None or math.isfinite(value), f"gate.{item.name}", value, "a finite number")


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Make a version the champion, if it is significantly better on one part and not much worse on the other."""

    name: str
    """Name in the model registry."""
    version: int | None = None
    """Version to promote; by default the one with the alias `candidate`."""
    metric: str | None = None
    """Metric of each user that is compared; by default the one that epochs and trials are selected by."""
    on: Path | None = None
    """Packed data set to compare on, for versions of different data: all its interactions that neither was trained on, with
    items known to both. Its parts are `held_out` (items both were trained on) and `cold_held_out` (neither was)."""
    part: Literal["auto", "validation", "cold_validation", "test", "cold_test", "held_out", "cold_held_out"] = "auto"
    """Part of the data that decides; auto: as in stage 2, cold_validation where both versions have it, else validation; with
    --on cold_held_out, else held_out. A test part on which versions were selected no longer measures them fairly."""
    margin: float = 0.0
    """By how much the mean there must be larger than the champion's, in units of the metric."""
    max_loss: float = 0.05
    """Largest loss on the other part (known items where new ones decide, and the other way round), as a fraction of the
    champion's mean; a larger one is refused if it is significant. 1: any loss is accepted."""
    significance: float = 0.05
    """Largest p of the paired t-tests over users: of a gain beyond the margin, and (one-sided) of a loss."""
    gate: GateConfig = field(default_factory=GateConfig)
    """Conditions besides accuracy."""

    def __post_init__(self) -> None:
        require(self.version is None or self.version >= 1, "version", self.version, "1 or more")
        require(self.margin >= 0, "margin", self.margin, "0 or more")
        require(0 <= self.max_loss <= 1, "max_loss", self.max_loss, "a fraction in [0, 1]")
        require(0 < self.significance <= 1, "significance", self.significance, "more than 0, at most 1")
        groups = "none with --on: each version's groups are those of its own data"
        require(
            self.on is None or self.gate.max_group_loss is None, "gate.max_group_loss", self.gate.max_group_loss, groups
        )


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Make the previous champion the champion again."""

    name: str
    """Name in the model registry."""


@dataclass(frozen=True, kw_only=True)
class DeleteConfig:
    """Delete a version of a registered model."""

    name: str
    """Name in the model registry."""
    version: int
    """Version to delete."""
    force: bool = False
    """Delete it even if it is the champion."""

    def __post_init__(self) -> None:
        require(self.version >= 1, "version", self.version, "1 or more")


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """List what is registered: versions, aliases, lineage and metrics; tab-separated where the output is not a terminal."""

    name: str | None = None
    """Name in the model registry; by default all."""
    metric: str | None = None
    """Metric shown for each part of the data; by default the one used for selection."""
    json: bool = False
    """Print JSON, with all metrics and tags."""


@dataclass(frozen=True, kw_only=True)
class AddItemsConfig:
    """Add new items to a registered model, encoded by its encoder, as a new version; nothing is trained."""

    model: str
    """Model to extend: `models:/NAME@ALIAS` or `models:/NAME/VERSION`. With an alias, the alias moves to the new version."""
    items: Path
    """Catalogue of the new items, in any of the formats that `ptmrec pack` reads. They may lack an image or a text where items
    of the model's own data do (`pack --missing keep`)."""
    images: Path | None = None
    """Folder that image paths are relative to; by default the catalogue's own folder."""
    columns: CatalogueColumnsConfig = field(default_factory=CatalogueColumnsConfig)
    """Column names; columns that the model's requests filter by are read by the names that they have there."""
    separator: str | None = None
    """Column separator of a text table; by default implied by the file name."""
    header: bool = True
    """Whether the first row of a text table names the columns."""
    on_error: Literal["skip", "fail"] = "skip"
    """What to do with bad rows and images: leave them out and count them, or stop before anything is registered."""

    def __post_init__(self) -> None:
        require(self.model.startswith("models:/"), "model", self.model, "models:/NAME@ALIAS or models:/NAME/VERSION")


@dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """Print recommendations of a registered model for some users, or write those for all users to a file."""

    model: str
    """Model URI: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder."""
    users: str | None = None
    """User ids, separated by commas."""
    users_file: Path | None = None
    """Text file with a user id on each line."""
    for_items: tuple[str, ...] = ()
    """Item ids (`12,15`): find the users that each of them is for, instead."""
    all: bool = False
    """All users of the training data; needs `--out`."""
    out: Path | None = None
    """Parquet file to write, over all ranks: user_id, rank, item_id, score. By default a table is printed."""
    top_k: int = 10
    """Items per user."""
    exclude_seen: bool = True
    """Leave out what the user took, in training, validation and test."""
    candidates: Literal["warm", "cold", "all"] = "warm"
    """Items to choose from. warm: those with interactions, by the full score; cold: those without any; all: both, by the cold
    score."""
    items: tuple[str, ...] = ()
    """Item ids to choose from instead (`12,15`), such as what is in stock."""
    exclude: tuple[str, ...] = ()
    """Item ids to leave out (`12,15`)."""
    filters: tuple[str, ...] = ()
    """Conditions on columns that the catalogue was packed with: `'year>=1990,genres~Comedy'`."""
    diversity: float = 0.0
    """Weight of diversity against relevance, 0 to 1, by maximal marginal relevance."""
    explain: bool = False
    """Show what IDs and what features contribute to each score, where it is the sum of both, and the items of the history that
    are most like the item."""
    unknown: Literal["skip", "error"] = "skip"
    """Users and items unknown to the model: `skip` gives these users the list of an average user, marked, and ignores these
    items; `error` refuses."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")
        require(0 <= self.diversity <= 1, "diversity", self.diversity, "0 to 1")
        chosen = self.candidates == "warm" or not self.items
        require(chosen, "candidates", self.candidates, "warm or nothing with --items, which are the candidates then")
        given = (self.users is not None) + (self.users_file is not None) + self.all + bool(self.for_items)
        require(given == 1, "users", self.users, "either --users, --users_file, --all or --for_items")
        require(not self.all or self.out is not None, "out", self.out, "a file with --all")
        require(not self.for_items or self.out is None, "out", self.out, "none with --for_items")
        require(not (self.explain and self.out is not None), "explain", self.explain, "false with --out")
        require(self.out is None or self.out.suffix == ".parquet", "out", self.out, "a name that ends in .parquet")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a registered model over HTTP, after verifying its files against those registered; limits: docs/serving.md."""

    model: str
    """Model URI: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder. A server keeps the version that an alias pointed
    at when it started."""
    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for all of this machine's."""
    port: int = 5000
    """Port to listen on."""
    workers: int = 1
    """Server processes, each with the whole model in its memory."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        require_processes("workers", self.workers)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole pipeline on a small generated catalogue: a tiny CLIP, both stages, the refit, registry and report."""

    out: Path = Path("demo")
    """Folder for everything that the demo writes; `report.html` is in it."""
    seed: int = 0
    """Seed; the same seed gives the same result."""

    def __post_init__(self) -> None:
        require_seeds("seed", self.seed)
