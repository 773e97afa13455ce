"""Hyper-parameters of recommenders of the next item; their rows are in `config/recommenders.py`."""

from dataclasses import dataclass

from ptmrec_dist.config.common import require
from ptmrec_dist.config.table import RecommenderConfig, bounded


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(RecommenderConfig):
    """Hyper-parameters that recommenders of the next item have in common."""

    dim: int = bounded(64, 1)
    """Width of the vectors of items and of states."""
    length: int = bounded(50, 1)
    """Most recent items of a user that are read."""
    dropout: float = bounded(0.1, 0, below=1)
    """Fraction of the values that training drops."""


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(SequenceConfig):
    """Hyper-parameters of SASRec."""

    layers: int = bounded(2, 1)
    """Blocks of self-attention."""
    heads: int = bounded(2, 1)
    """Attention heads; they divide the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of --{self.group}.dim {self.dim}"
        require(self.dim % self.heads == 0, f"{self.group}.heads", self.heads, expected)


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
