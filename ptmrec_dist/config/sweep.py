"""Settings of `ptmrec sweep`: hyper-parameter search over stage 1 or stage 2."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ptmrec_dist.config.common import (
    RayConfig,
    ReadsRun,
    TrackingConfig,
    check_alias,
    check_model_name,
    require,
    require_device,
    require_seeds,
)


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """ASHA (Li et al. 2020): trials that are worse than the others at a rung are stopped."""

    enabled: bool = True
    """Stop trials early; otherwise each trains to its end."""
    grace: int | None = None
    """Epochs that every trial trains, the first rung; by default 1 in stage 2, and 10 in stage 1, whose epochs are shorter and
    whose recommenders may stay at chance level for hundreds of steps."""
    reduction: int = 3
    """Reduction factor R: at each rung one of R trials continues, and each rung is R times as many epochs as the last."""

    def __post_init__(self) -> None:
        require(self.grace is None or self.grace >= 1, "asha.grace", self.grace, "1 or more epochs")
        require(self.reduction >= 2, "asha.reduction", self.reduction, "2 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ReadsRun):
    """Search settings of stage 1 or stage 2 on a Ray cluster by the validation metric, and train the winner over seeds."""

    stage1: Path | None = None
    """Search stage 2: run folder of stage 1 that every trial starts from."""
    out: Path
    """Folder of the sweep, on a file system shared by all nodes. Started again with the same settings, it resumes."""
    space: dict[str, dict[str, Any]]
    """Dotted key of a trial's settings (`optim.encoder_lr`) to the distribution to sample: `{choice: [..]}`, or, with both ends
    included, `{uniform: [low, high]}`, `{loguniform: [low, high]}`, `{randint: [low, high]}`, `{lograndint: [low, high]}`."""
    stage2: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec stage2` that are the same in all trials, with `stage1`."""
    train: dict[str, Any] = field(default_factory=dict)
    """Search stage 1, instead of `stage1`: settings of `ptmrec stage1` that are the same in all trials (`shards`, `features`,
    `recommender`, `model`, `epochs`)."""
    shards: Path | None = None
    """Packed data set: with `stage1` that of the run, if it was moved; with `train` the one to train on, in its place."""
    features: Path | None = None
    """Frozen features, likewise."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: tree-structured Parzen estimator; random; grid: every combination of the choices."""
    trials: int | None = None
    """Trials; by default 32; a grid always runs all of its points."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """Early stopping of trials."""
    ranks: int = 1
    """DeepSpeed workers of a trial."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Cluster, and the resources of a rank."""
    concurrent: int | None = None
    """Largest number of concurrent trials; by default as many as the cluster has room for when the sweep starts."""
    max_failures: int = 3
    """How often a trial is restarted from its last checkpoint after a worker or a node has died."""
    winner_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds with which the best settings are trained again; only these runs read the test split (`0,1,2`).
    Empty: none."""
    name: str | None = None
    """Name in the model registry for the winner (the seed that is best on validation); by default it is not registered."""
    alias: str = "candidate"
    """Alias that the registered version gets."""
    resume: bool = False
    """Require an existing sweep to resume; without it, the same command resumes or starts one."""
    seed: int = 0
    """Seed of the search."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: GPUs where `ray.gpus` gives ranks some."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking; each trial is a child of the sweep's run."""

    def __post_init__(self) -> None:
        for name in ("space", "stage2", "train"):
            for key in getattr(self, name):
                require(isinstance(key, str), name, key, "names of settings as keys")
        self._check_stage()
        if self.asha.grace is None:
            object.__setattr__(self, "asha", replace(self.asha, grace=10 if self.train else 1))
        require(len(self.space) > 0, "space", self.space, "one key or more")
        require(self.trials is None or self.trials >= 1, "trials", self.trials, "1 or more")
        grid = self.search == "grid"
        require(not (grid and self.trials), "trials", self.trials, "nothing with --search grid, which runs every point")
        require(self.concurrent is None or self.concurrent >= 1, "concurrent", self.concurrent, "1 or more")
        require(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        require_seeds("seed", self.seed)
        require(self.ranks >= 1, "ranks", self.ranks, "1 or more")
        if self.name is not None:
            check_model_name(self.name)
        check_alias(self.alias)
        require_device(self.device, indexed=False)
        seeds = self.winner_seeds
        require_seeds("winner_seeds", *seeds)
        require(len(set(seeds)) == len(seeds), "winner_seeds", list(seeds), "each only once")
        require(
            not self.name or len(seeds) > 0, "name", self.name, "winner_seeds: without any there is nothing to register"
        )

    def _check_stage(self) -> None:
        """Either stage 1 is searched or stage 2."""
        one = "either stage1, a run of stage 1, to search stage 2, or train, settings of stage 1, to search those"
        require(self.stage1 is not None or bool(self.train), "stage1", self.stage1, one)
        require(self.stage1 is None or not self.train, "train", self.train, f"{one}, not both")
        for name in ("stage2", "encoder", "image_encoder", "text_encoder"):
            value = getattr(self, name)
            require(not (self.train and value), name, value, "none with train, by which stage 1 alone is searched")
        for name in ("shards", "features"):
            value = getattr(self, name)
            require(not (value and name in self.train), name, value, f"none with train.{name}, which names them, too")
