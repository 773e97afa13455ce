"""Settings of the command that trains a recommender on frozen features."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import TrackingConfig, require, require_device, require_seeds, require_timeout
from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.config.recommenders import RecommenderConfig, recommender_entry
from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.config.table import resolved


@dataclass(frozen=True, kw_only=True)
class Stage1ZeroConfig:
    """DeepSpeed ZeRO of stage 1: what is divided over ranks that hold whole embedding tables, as propagation needs them."""

    stage: Literal[0, 1, 2] = 1
    """0: nothing; 1: optimiser state; 2: gradients too. One process has nothing to divide."""


@dataclass(frozen=True, kw_only=True)
class ChoosesRecommender:
    """Settings of every command that starts from an untrained recommender."""

    features: Path | None = None
    """Frozen features; not needed by ID-only recommenders."""
    recommender: str = "vbpr"
    """Recommender to train."""
    modalities: Literal["auto", "both", "image", "text"] = "auto"
    """Modalities that the recommender reads; auto: all that the features have."""
    model: RecommenderConfig = field(default_factory=RecommenderConfig)
    """Hyper-parameters of the recommender; a bare `RecommenderConfig` stands for its defaults."""

    def __post_init__(self) -> None:
        entry = recommender_entry(self.recommender)
        model = resolved(entry, self.recommender, "model", self.model, bare=RecommenderConfig)
        if isinstance(model, PMMRecConfig):
            for name in ("image_width", "text_width"):
                width = getattr(model, name)
                require(width == 0, f"model.{name}", width, "0: training with the encoder sets it")
        object.__setattr__(self, "model", model)


@dataclass(frozen=True, kw_only=True)
class Stage1Config(ChoosesRecommender, NextItemConfig):
    """Train a recommender on the frozen encoder's features."""

    shards: Path
    """Packed data set."""
    out: Path
    """Run folder. Started again with the same settings, an interrupted run resumes."""
    from_run: Path | None = None
    """Finished run of the same recommender to continue (`--from`), usually on yesterday's data: what it learnt of users and
    items that both data sets have is taken over by their ids, others are new. It is evaluated first, as epoch 0."""
    from_shards: Path | None = None
    """Packed data set of that run, if it was moved; it must have the same fingerprint."""
    init: Literal["als"] | None = None
    """als: start bpr, lightgcn or vbpr from factors of the interactions, which take seconds (package `implicit`, installed by
    `pip install 'ptmrec-dist[als]'`), and evaluate them first, as epoch 0. By default from random numbers."""
    train_features: bool = False
    """Train the feature tables as well (common reference implementations always do)."""
    lr: float | None = None
    """Adam's learning rate; by default that of the recommender, times the square root of the batch size over 2,048 where
    the batch size is chosen by the size of the data."""
    batch_size: int | None = None
    """Interactions per step, over all ranks; sequence recommenders get as many users as have that many to predict, on
    average. By default 2,048; for other recommenders a 200th of the interactions if that is more, since a step of those that
    propagate costs as much as a pass over all interactions."""
    epochs: int = 1000
    """Largest number of epochs."""
    patience: int = 20
    """Evaluations without an improvement on validation before training stops, to which `patience_growth` adds."""
    patience_growth: float = 0.33
    """Evaluations added to `patience`, as a fraction of those up to the best one: a run whose best was the 100th of its
    evaluations stops after 20 + 33 without a better one. 0: patience stays as it is."""
    patience_after: int = 1000
    """Steps before patience starts to count: a recommender may stay at chance level for hundreds of steps before it
    learns."""
    average: bool = True
    """Evaluate and keep an average of the weights after each epoch, half of it over the latest twelfth of them, in place of the
    latest weights. It costs as much memory as the weights."""
    eval_every: int = 1
    """Epochs between evaluations."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    tables: Literal["whole", "rows"] = "whole"
    """What each of several ranks holds. whole: all embeddings of users and items, and all features; rows (bpr and vbpr): some
    rows of them, of their gradients and of Adam's moments, without ZeRO, and it fetches the others that its batch reads. The
    result is the same, and a run may resume with the other."""
    zero: Stage1ZeroConfig = field(default_factory=Stage1ZeroConfig)
    """DeepSpeed ZeRO, where several ranks train and hold whole tables."""
    timeout: float = 600.0
    """Seconds that a rank waits for the others, or for its own next step, before it stops with exit code 3."""
    mask_validation_at_test: bool = False
    """Leave validation positives out of the ranking at test time (the literature keeps them in)."""
    mask_history: bool = True
    """Leave items that a user took before out of the ranking: those of training, at test time also those of validation for
    recommenders that read histories. An item that is taken again is then a miss."""
    seed: int = 0
    """Seed of initialisation, batches and negatives."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        ChoosesRecommender.__post_init__(self)
        NextItemConfig.__post_init__(self)
        if not isinstance(self.model, SequenceConfig):
            self.require_no_next_item(self.recommender)
        alone = self.from_shards is None or self.from_run is not None
        require(alone, "from_shards", self.from_shards, "none without --from")
        require(self.init is None or self.from_run is None, "init", self.init, "none with --from")
        whole = self.init is None or self.tables == "whole"
        require(whole, "init", self.init, "none with --tables rows, since one rank computes the factors of all rows")
        frozen = not self.train_features or self.tables == "whole"
        require(frozen, "train_features", True, "False with --tables rows")
        require_seeds("seed", self.seed)
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for name in ("patience", "eval_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("epochs", "patience_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            0 <= self.patience_growth < math.inf, "patience_growth", self.patience_growth, "a finite number, 0 or more"
        )
        require(self.lr is None or self.lr > 0, "lr", self.lr, "more than 0")
        require_timeout(self.timeout)
        require_device(self.device)

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate."""
        return recommender_entry(self.recommender).learning_rate if self.lr is None else self.lr
