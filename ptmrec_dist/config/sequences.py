"""Hyper-parameters of sequence recommenders; their rows are in `config/recommenders.py`."""

from dataclasses import dataclass
from typing import Literal

from ptmrec_dist.config.common import require
from ptmrec_dist.config.table import RecommenderConfig, bounded


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(RecommenderConfig):
    """Hyper-parameters that sequence recommenders have in common."""

    dim: int = bounded(64, 1)
    """Width of the vectors of items and of states."""
    length: int = bounded(50, 1)
    """Most recent items of a user that are read."""
    dropout: float = bounded(0.1, 0, below=1)
    """Fraction of the values that training drops."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(SequenceConfig):
    """Hyper-parameters that recommenders with self-attention have in common."""

    layers: int = bounded(2, 1)
    """Blocks of self-attention."""
    heads: int = bounded(2, 1)
    """Attention heads; they divide the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of --{self.group}.dim {self.dim}"
        require(self.dim % self.heads == 0, f"{self.group}.heads", self.heads, expected)


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(AttentionConfig):
    """Hyper-parameters of SASRec."""


@dataclass(frozen=True, kw_only=True)
class GRU4RecConfig(SequenceConfig):
    """Hyper-parameters of GRU4Rec."""

    layers: int = bounded(2, 1)
    """Recurrent layers."""


@dataclass(frozen=True, kw_only=True)
class NextItNetConfig(SequenceConfig):
    """Hyper-parameters of NextItNet."""

    pairs: int = bounded(2, 1)
    """Pairs of residual blocks, with dilations 1 and 4: a state depends on the latest 1 + 30 x pairs items."""


@dataclass(frozen=True, kw_only=True)
class ContentSequenceConfig(AttentionConfig):
    """Hyper-parameters that causal transformers over features have in common; defaults are those published with UniSRec."""

    dim: int = bounded(300, 1)
    """Width of the vectors of items and of states."""
    dropout: float = bounded(0.5, 0, below=1)
    """Fraction of the values that training drops."""
    inner: int = bounded(256, 1)
    """Width of the networks between layers of attention."""


@dataclass(frozen=True, kw_only=True)
class FDSAConfig(ContentSequenceConfig):
    """Hyper-parameters of FDSA."""


@dataclass(frozen=True, kw_only=True)
class CARCAConfig(AttentionConfig):
    """Hyper-parameters of CARCA."""

    dim: int = bounded(90, 1)
    """Width of the vectors of items and of states."""
    dropout: float = bounded(0.5, 0, below=1)
    """Fraction of the values that training drops."""
    layers: int = bounded(3, 1)
    """Blocks of self-attention."""
    heads: int = bounded(1, 1)
    """Attention heads; they divide the width."""
    attention: Literal["causal", "full"] = "causal"
    """causal: an item attends to those before it, and a candidate to those before the position that it stands for; full: all
    attend to the whole sequence, as published, so that in training a target is among the items that it attends to."""


@dataclass(frozen=True, kw_only=True)
class CosineSequenceConfig(ContentSequenceConfig):
    """Hyper-parameters that UniSRec and VQ-Rec have in common."""

    temperature: float = bounded(0.07, 0.01)
    """Divides the cosine of a state and an item."""


@dataclass(frozen=True, kw_only=True)
class UniSRecConfig(CosineSequenceConfig):
    """Hyper-parameters of UniSRec."""

    experts: int = bounded(8, 1)
    """Whitening networks, whose outputs are mixed."""
    expert_dropout: float = bounded(0.2, 0, below=1)
    """Fraction of the features that training drops."""


@dataclass(frozen=True, kw_only=True)
class VQRecConfig(CosineSequenceConfig):
    """Hyper-parameters of VQ-Rec."""

    codebooks: int = bounded(32, 1)
    """Parts that an item's features are cut into, each of which has a code."""
    bits: int = bounded(8, 1, 8)
    """A part has 2^bits codes, at most as many as there are items with training interactions."""
