"""Settings of `ptmrec experiment`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptmrec_dist.config.common import EncoderConfig, Modalities, RayConfig, TrackingConfig, require, require_device
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.config.tuning import METHODS

Paradigm = Literal["frozen", "two_stage", "two_stage_without_kt", "joint", "contrastive"]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Compare recommenders, methods of tuning and paradigms on one packed data set, over seeds, and write the tables."""

    shards: Path
    """Packed data set."""
    encoder: EncoderConfig
    """Encoder that everything starts from."""
    out: Path
    """Folder of the experiment. Started again, it resumes what is not finished."""
    recommenders: tuple[str, ...] = ("vbpr",)
    """Recommenders (`vbpr,freedom`); ID-only recommenders run in the paradigm `frozen` alone."""
    paradigms: tuple[Paradigm, ...] = ("frozen", "two_stage_without_kt", "two_stage")
    """Paradigms (`frozen,two_stage`). frozen: stage 1 alone; two_stage: stage 1, then stage 2, with knowledge transfer or
    without_kt; joint: both from scratch; contrastive: the encoder fine-tuned on pairs of image and text, then stage 1."""
    methods: tuple[str, ...] = ("prompt",)
    """Ways of tuning the encoder (`prompt,lora`), in all paradigms but `frozen`; `none` is skipped in `contrastive`."""
    modalities: tuple[Modalities, ...] = ("both",)
    """Modalities that the recommenders read (`both,text`)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds (`0,1,2`); every cell is run once per seed."""
    baseline: Paradigm = "frozen"
    """Paradigm that the others are tested against, with the same recommender, modalities and, where it has one, method."""
    features: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec features`."""
    stage1: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec stage1`, in every paradigm that has one."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Settings common to stage2, joint and contrastive: those of the methods, `optim`, `zero`, `batch_size`."""
    stage2: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec stage2`."""
    joint: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec joint`."""
    contrastive: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec contrastive`."""
    processes: int = 1
    """Concurrent runs, on this machine or on the cluster."""
    ranks: int = 1
    """Ranks of each run that tunes an encoder."""
    ray: RayConfig | None = None
    """Ray cluster to run on, the ranks of a run on one node; without it runs are on this machine. `out` and all inputs must
    be absolute paths on a file system shared by all nodes."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking; each cell is a child of the experiment's run."""

    def __post_init__(self) -> None:
        for name in self.recommenders:
            require(name in RECOMMENDERS, "recommenders", name, f"some of {', '.join(RECOMMENDERS)}")
        for name in self.methods:
            require(name in METHODS, "methods", name, f"some of {', '.join(METHODS)}")
        for name in ("recommenders", "paradigms", "methods", "modalities", "seeds"):
            values = getattr(self, name)
            require(len(values) > 0, name, list(values), "one or more")
            require(len(set(values)) == len(values), name, list(values), "each only once")
        require(min(self.seeds) >= 0, "seeds", list(self.seeds), "0 or more")
        require(self.baseline in self.paradigms, "baseline", self.baseline, f"one of {', '.join(self.paradigms)}")
        for name in ("processes", "ranks"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require_device(self.device, indexed=self.ranks == 1 and self.ray is None)
