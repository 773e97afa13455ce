"""Settings of the command that trains the recommender of a tuned encoder again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptmrec_dist.config.common import TrackingConfig, require, require_device, require_seeds, require_timeout
from ptmrec_dist.config.stage1 import Stage1ZeroConfig


@dataclass(frozen=True, kw_only=True)
class RefitConfig:
    """Train the recommender again on the features of a tuned encoder; settings that are not given are those of stage 1."""

    run: Path
    """Run folder of stage 2 or joint training, whose encoder was tuned; it remains an input of the new run."""
    out: Path
    """Run folder. Started again with the same settings, an interrupted run resumes."""
    start: Literal["run", "scratch"] = "run"
    """run: the recommender starts from the run's weights, which are evaluated first; scratch: it is initialised again."""
    shards: Path | None = None
    """Packed data set of the run, if it was moved; it must have the same fingerprint."""
    stage1: Path | None = None
    """Run folder of the run's stage 1, if it was moved; it must have the same fingerprint."""
    model: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the recommender that differ from the run's (`--model.dim 32`)."""
    lr: float | None = None
    """Adam's learning rate; by default stage 1's, and a third of it where the recommender starts from the run's weights."""
    batch_size: int | None = None
    """Interactions per step, over all ranks."""
    epochs: int | None = None
    """Largest number of epochs."""
    patience: int | None = None
    """Evaluations without an improvement on validation before training stops, to which `patience_growth` adds."""
    patience_growth: float | None = None
    """Evaluations added to `patience`, as a fraction of those up to the best one."""
    patience_after: int | None = None
    """Steps before patience starts to count."""
    average: bool | None = None
    """Evaluate and keep an average of the weights after each epoch in place of the latest weights."""
    eval_every: int | None = None
    """Epochs between evaluations."""
    seed: int | None = None
    """Seed of initialisation, batches and negatives."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    zero: Stage1ZeroConfig = field(default_factory=Stage1ZeroConfig)
    """DeepSpeed ZeRO, where several ranks train."""
    timeout: float = 600.0
    """Seconds that a rank waits for the others, or for its own next step, before it stops with exit code 3."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require_timeout(self.timeout)
        if self.seed is not None:
            require_seeds("seed", self.seed)
        require_device(self.device)
