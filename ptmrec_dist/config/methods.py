"""Settings of the tuning methods, and those common to all commands that tune an encoder."""

from dataclasses import dataclass, field
from typing import Literal

from ptmrec_dist.config.common import TrackingConfig, require, require_device

Method = Literal["prompt", "lora", "adapter", "full", "last_n", "none"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How the encoder is tuned; each method but `full` and `none` has settings of its own under its name."""

    method: Method = "prompt"
    """prompt: deep prompts; lora: low-rank updates of attention and MLP projections; adapter: bottlenecks after attention
    and MLP; full: all weights; last_n: all weights of the last blocks; none: the encoder stays frozen, everything else
    is trained in the same way. In every tower that the recommender reads, or in those that the method's `towers` names."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory, more time."""


@dataclass(frozen=True, kw_only=True)
class _TowersConfig:
    """Settings common to the methods."""

    towers: Literal["all", "image", "text"] = "all"
    """Towers that are tuned; the others stay frozen."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(_TowersConfig):
    """Deep prompts: new vectors that join the tokens of each of the first `depth` layers."""

    depth: int | Literal["all"] = "all"
    """Layers 1 to depth of each tower receive their own prompts; `all`: every layer of each tower."""
    length: int = 4
    """Prompt vectors per layer."""

    def __post_init__(self) -> None:
        require(self.depth == "all" or self.depth >= 1, "prompt.depth", self.depth, "1 or more, or 'all'")
        require(self.length >= 1, "prompt.length", self.length, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(_TowersConfig):
    """LoRA: a trained low-rank update beside each projection of attention and MLP, in every layer."""

    rank: int = 8
    """Rank of each update."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", self.rank, "1 or more")
        require(self.alpha > 0, "lora.alpha", self.alpha, "more than 0")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(_TowersConfig):
    """Houlsby adapters: a bottleneck after the attention and one after the MLP of every layer."""

    bottleneck: int = 64
    """Width of the bottleneck."""

    def __post_init__(self) -> None:
        require(self.bottleneck >= 1, "adapter.bottleneck", self.bottleneck, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LastNConfig(_TowersConfig):
    """The last blocks of each tower, trained directly."""

    n: int = 2
    """Blocks."""

    def __post_init__(self) -> None:
        require(self.n >= 1, "last_n.n", self.n, "1 or more")


MethodConfig = PromptConfig | LoraConfig | AdapterConfig | LastNConfig


_ENCODER_LR: dict[str, float] = {
    "prompt": 1e-2,
    "lora": 1e-3,
    "adapter": 1e-3,
    "last_n": 1e-4,
    "full": 1e-5,
    "none": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class EncoderOptimConfig:
    """AdamW of the tuned weights of the encoder."""

    encoder_lr: float | None = None
    """Learning rate of the tuned weights of the encoder; by default prompt 1e-2, lora and adapter 1e-3, last_n 1e-4, full
    1e-5."""
    schedule: Schedule = "cosine"
    """cosine: learning rates rise over the first tenth of all steps, then fall to 0; constant: they do not change."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, to which it is clipped; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("encoder_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"optim.{name}", value, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed ZeRO: what is divided over the ranks."""

    stage: Literal[0, 1, 2, 3] = 1
    """0: nothing; 1: optimiser state; 2: gradients too; 3: parameters too (for encoders too large for one device)."""


@dataclass(frozen=True, kw_only=True)
class TunesEncoder:
    """Settings of every command that tunes an encoder: method, optimiser, engine, and handling of failures."""

    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Tuning method of the encoder."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompts, for `--tuning.method prompt`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank updates, for `--tuning.method lora`."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Bottlenecks, for `--tuning.method adapter`."""
    last_n: LastNConfig = field(default_factory=LastNConfig)
    """Blocks, for `--tuning.method last_n`."""
    optim: EncoderOptimConfig = field(default_factory=EncoderOptimConfig)
    """Optimiser."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """DeepSpeed ZeRO."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point precision of the encoder; everything else is always fp32."""
    strict: bool = False
    """Refuse images that were packed at fewer pixels than the encoder takes, instead of warning of them."""
    workers: int = 0
    """Loader processes per rank; 0 decodes in the rank's own process."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one is also written after every epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    check_every: int | None = None
    """Steps between reads of the losses, when the run stops if one is not finite and handles signals; by default 1 on a CPU
    and 10 on a GPU, where every read is a synchronisation."""
    timeout: float = 600.0
    """Seconds that a rank waits for the others, or for its own next step, before it stops with exit code 3."""
    max_damaged: float = 0.0
    """Largest fraction of a rank's items of an epoch that may be unreadable or missing: they are skipped and counted; beyond
    it the run stops with exit code 3."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.workers >= 0, "workers", self.workers, "0 or more")
        require(self.check_every is None or self.check_every >= 1, "check_every", self.check_every, "1 or more")
        require(self.timeout > 0, "timeout", self.timeout, "more than 0 seconds")
        require(0 <= self.max_damaged < 1, "max_damaged", self.max_damaged, "a fraction in [0, 1)")
        require_device(self.device)

    @property
    def method_settings(self) -> MethodConfig | None:
        """Settings of the chosen method; None for one that has none."""
        settings: MethodConfig | None = getattr(self, self.tuning.method, None)
        return settings

    @property
    def encoder_lr(self) -> float:
        """Learning rate of the tuned weights of the encoder."""
        chosen = self.optim.encoder_lr
        return _ENCODER_LR[self.tuning.method] if chosen is None else chosen
