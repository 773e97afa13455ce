"""Settings of recommenders, and of the command that trains one on frozen features."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import TrackingConfig, require, require_device


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Hyper-parameters of the recommender; empty ones take the recommender's own default."""

    dim: int | None = None
    """Width of the ID embeddings (64)."""
    layers: int | None = None
    """Propagation layers over the user-item graph (all but BPR and VBPR)."""
    reg_weight: float | None = None
    """Weight of the L2 term (FREEDOM: of the modal BPR terms)."""
    knn: int | None = None
    """Neighbours of an item in the item graphs (FREEDOM, MGCN)."""
    image_knn: int | None = None
    """Neighbours of an item in the image graph (SMORE)."""
    text_knn: int | None = None
    """Neighbours of an item in the text graph (SMORE)."""
    image_weight: float | None = None
    """Share of the image graph in the item graph, in [0, 1] (FREEDOM)."""
    edge_dropout: float | None = None
    """Share of the interaction edges dropped, in [0, 1): every epoch (FREEDOM), at most, every step (BUIR)."""
    momentum: float | None = None
    """Share that the target embeddings keep of themselves at a step, in [0, 1] (BUIR)."""
    cl_weight: float | None = None
    """Weight of the contrastive terms (MGCN, SMORE)."""
    temperature: float | None = None
    """Temperature of the contrastive terms (MGCN, SMORE)."""
    dropout: float | None = None
    """Share of the preference gates' values left out in training, in [0, 1) (SMORE)."""

    def __post_init__(self) -> None:
        require(self.dim is None or self.dim >= 1, "model.dim", self.dim, "1 or more")
        require(self.layers is None or self.layers >= 0, "model.layers", self.layers, "0 or more")
        for name in ("knn", "image_knn", "text_knn"):
            neighbours = getattr(self, name)
            require(neighbours is None or neighbours >= 1, f"model.{name}", neighbours, "1 or more")
        for name in ("reg_weight", "cl_weight"):
            weight = getattr(self, name)
            require(weight is None or weight >= 0, f"model.{name}", weight, "0 or more")
        for name in ("image_weight", "momentum"):
            share = getattr(self, name)
            require(share is None or 0 <= share <= 1, f"model.{name}", share, "a share in [0, 1]")
        divisor = self.temperature
        require(divisor is None or divisor >= 0.025, "model.temperature", divisor, "0.025 or more")
        for name in ("edge_dropout", "dropout"):
            share = getattr(self, name)
            require(share is None or 0 <= share < 1, f"model.{name}", share, "a share in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Stage1ZeroConfig:
    """DeepSpeed ZeRO of stage 1: what is divided over the ranks. Tables are whole on each: propagation needs them."""

    stage: Literal[0, 1, 2] = 1
    """0: nothing; 1: optimiser state; 2: gradients too. One process has nothing to divide."""


@dataclass(frozen=True, kw_only=True)
class ChoosesRecommender:
    """What every command that begins with an untrained recommender takes."""

    features: Path | None = None
    """Frozen features; not needed by ID-only recommenders."""
    recommender: Literal["bpr", "lightgcn", "buir", "vbpr", "freedom", "mgcn", "smore"] = "vbpr"
    """Recommender to train."""
    modalities: Literal["auto", "both", "image", "text"] = "auto"
    """Modalities that the recommender sees; auto: all that the features have."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Hyper-parameters of the recommender."""


@dataclass(frozen=True, kw_only=True)
class Stage1Config(ChoosesRecommender):
    """Train a recommender on the frozen encoder's features."""

    shards: Path
    """Packed data set."""
    out: Path
    """Run folder. Started again with the same settings, an interrupted run goes on."""
    train_features: bool = False
    """Train the feature tables as well (the field's reference code does so unasked)."""
    lr: float = 1e-3
    """Adam's learning rate."""
    batch_size: int = 2048
    """Interactions a step over all ranks together."""
    epochs: int = 1000
    """Most epochs to train."""
    patience: int = 20
    """Evaluations without a better validation Recall@20 before training stops."""
    patience_after: int = 1000
    """Steps before patience begins to run out: a recommender may rank no better than chance for hundreds of them, and then
    learn."""
    eval_every: int = 1
    """Epochs between evaluations."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    zero: Stage1ZeroConfig = field(default_factory=Stage1ZeroConfig)
    """DeepSpeed ZeRO, where several ranks train."""
    timeout: float = 600.0
    """Seconds that a rank waits for the others, or for its own next step, before it gives up with exit code 3."""
    mask_validation_at_test: bool = False
    """Leave validation positives out of the ranking at test time (the field keeps them in)."""
    seed: int = 0
    """Seed of initialisation, batches and negatives."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        for name in ("batch_size", "patience", "eval_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("epochs", "patience_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        require(self.timeout > 0, "timeout", self.timeout, "more than 0 seconds")
        require_device(self.device)
