"""The table of tuning methods: settings, import path, default learning rate. A new method is a file and a row here.

The command line, its help, sweeps, experiments, saved encoders and the general tests are derived from the row.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from ptmrec_dist.config.common import require
from ptmrec_dist.config.table import Entry, Hyperparameters, bounded, configured, entry_of, resolved
from ptmrec_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Hyperparameters):
    """Nothing is tuned: the encoder stays frozen, everything else is trained in the same way."""

    @property
    def group(self) -> str:
        """The method's name."""
        return next((name for name, entry in METHODS.items() if entry.config is type(self)), "tuning")


@dataclass(frozen=True, kw_only=True)
class TowersConfig(MethodConfig):
    """Settings common to the methods that tune a tower."""

    towers: Literal["both", "image", "text"] = "both"
    """Towers that are tuned, of those that the recommender reads; the others stay frozen."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(TowersConfig):
    """Deep prompts: new vectors that join the tokens of each of the first `depth` blocks."""

    depth: int | Literal["all"] = "all"
    """Blocks 1 to depth of each tower receive their own prompts; `all`: every block of each tower."""
    length: int = bounded(4, 1)
    """Prompt vectors per block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.depth == "all" or self.depth >= 1, "prompt.depth", self.depth, "1 or more, or 'all'")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TowersConfig):
    """LoRA: a low-rank update beside each linear layer and each 1 x 1 convolution of every block."""

    rank: int = bounded(8, 1)
    """Rank of each update."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, "lora.alpha", self.alpha, "more than 0")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(TowersConfig):
    """Houlsby adapters: a bottleneck after the attention and one after the MLP of every block."""

    bottleneck: int = bounded(64, 1)
    """Width of the bottleneck."""


@dataclass(frozen=True, kw_only=True)
class LastNConfig(TowersConfig):
    """All weights of the last blocks of each tower (of a convolutional network, the last stages)."""

    n: int = bounded(2, 1)
    """Blocks."""


@dataclass(frozen=True, kw_only=True)
class FullConfig(TowersConfig):
    """All weights of each tower."""


@dataclass(frozen=True)
class MethodEntry(Entry):
    """A row of the table."""

    config: type[MethodConfig]
    """Settings with their defaults."""
    learning_rate: float
    """Learning rate of the tuned weights, unless the settings give one."""
    mergeable: bool
    """Whether a tuned encoder can be written with the weights of the original model alone."""
    neutral_start: bool = True
    """Whether features stay as they are until something is trained."""


_PACKAGE = "ptmrec_dist.encoders.tuning"
METHODS: dict[str, MethodEntry] = {
    "prompt": MethodEntry(PromptConfig, f"{_PACKAGE}.prompts:Prompts", 1e-2, mergeable=False, neutral_start=False),
    "lora": MethodEntry(LoraConfig, f"{_PACKAGE}.lora:Lora", 1e-3, mergeable=True),
    "adapter": MethodEntry(AdapterConfig, f"{_PACKAGE}.adapters:Adapters", 1e-3, mergeable=False),
    "last_n": MethodEntry(LastNConfig, f"{_PACKAGE}.unfrozen:LastN", 1e-4, mergeable=True),
    "full": MethodEntry(FullConfig, f"{_PACKAGE}.unfrozen:Full", 1e-5, mergeable=True),
    "none": MethodEntry(MethodConfig, f"{_PACKAGE}.unfrozen:Frozen", 0.0, mergeable=True),
}
"""Name to method."""


def method_entry(name: str) -> MethodEntry:
    """Find a tuning method by name.

    Args:
        name: A key of `METHODS`.

    Returns:
        Its row.

    Raises:
        UserError: An unknown name.
    """
    return entry_of(METHODS, "tuning.method", name)


def method_config(name: str, **values: Any) -> MethodConfig:
    """Make settings of a tuning method by name.

    Args:
        name: A key of `METHODS`.
        **values: Settings that differ from its defaults.

    Returns:
        The settings.

    Raises:
        UserError: An unknown name or setting, or a value out of its range.
    """
    return cast(MethodConfig, configured(method_entry(name), name, name, values))


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How the encoder is tuned."""

    method: str = "last_n"
    """Tuning method of the encoder."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory, more time."""
    settings: MethodConfig = field(default_factory=MethodConfig)
    """Settings of the method, on the command line under its name; a bare `MethodConfig` stands for its defaults."""

    def __post_init__(self) -> None:
        entry = method_entry(self.method)
        settings = resolved(entry, self.method, "tuning.settings", self.settings, bare=MethodConfig)
        object.__setattr__(self, "settings", settings)


def require_used(groups: Iterable[str], methods: Collection[str]) -> None:
    """Refuse settings of tuning methods that are not used: another method would be trained without them.

    Args:
        groups: Names that settings were given under; those that are no tuning method are passed over.
        methods: Tuning methods in use.

    Raises:
        UserError: A tuning method with settings that is not among them.
    """
    for name in groups:
        if name in METHODS and name not in methods:
            raise UserError(
                f"{name}: got settings of a tuning method that is not used; expected those of {', '.join(sorted(methods))}, or "
                f"--tuning.method {name}"
            )


def used_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings of the tuning methods that a command does not use, as files may hold them.

    Args:
        plain: Nested plain settings of a command.

    Returns:
        The others.
    """
    tuning = plain.get("tuning")
    method = tuning.get("method") if isinstance(tuning, Mapping) else None  # the parser refuses anything else
    return {key: value for key, value in plain.items() if method is None or key not in METHODS or key == method}


def groups(settings: type) -> dict[str, type[Hyperparameters]]:
    """List the tuning methods that have settings, where a command tunes an encoder.

    Args:
        settings: The dataclass of the command's settings.

    Returns:
        Name to dataclass.
    """
    if "tuning" not in {item.name for item in fields(settings)}:
        return {}
    return {name: entry.config for name, entry in METHODS.items() if fields(entry.config)}
