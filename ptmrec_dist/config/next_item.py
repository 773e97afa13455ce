"""Settings of the loss of recommenders that predict the next item."""

from dataclasses import dataclass, fields
from typing import Literal

from ptmrec_dist.config.common import require

_NUM_NEGATIVES = {"bce": 1, "gbce": 256, "sampled": 256}


@dataclass(frozen=True, kw_only=True)
class NextItemConfig:
    """The loss over all positions of the sequences; only sequence recommenders read it."""

    loss: Literal["inbatch", "full", "bce", "gbce", "sampled"] = "inbatch"
    """Loss of sequence recommenders. Cross-entropy against the other items of the step (inbatch), all items (full) or
    sampled ones (sampled); binary cross-entropy against sampled ones, as in SASRec (bce) or calibrated as in gSASRec (gbce)."""
    sequences: Literal["all", "latest"] = "all"
    """all: a history that is longer than the recommender reads is cut into several sequences, so that every training item but a
    user's first is predicted; latest: each user's latest sequence alone is trained on, as in PMMRec."""
    logq: bool = True
    """inbatch: subtract the logarithm of an item's probability to be in a step from its score while training, as the authors of
    PMMRec do: popular items are negatives more often, and would otherwise never be recommended."""
    duplicates: Literal["count", "once"] = "count"
    """inbatch: an item that the step's sequences have n times counts n times as a negative, or once."""
    negatives: Literal["world", "rank"] = "world"
    """inbatch: negatives come from the sequences of all ranks, or from those of the same rank, so that the loss depends on the
    number of ranks."""
    num_negatives: int | None = None
    """bce, gbce, sampled: negatives sampled for each position; by default 1 for bce and 256 for the others."""
    calibration: float = 0.75
    """gbce: t of gSASRec, from 0 (as bce) to 1 (scores are fully calibrated)."""

    def __post_init__(self) -> None:
        for name, losses in _READ_BY.items():
            readers = f"{_default(name)}, or one of --loss {', '.join(losses)}, which read it"
            require(self.loss in losses or getattr(self, name) == _default(name), name, getattr(self, name), readers)
        require(self.num_negatives is None or self.num_negatives >= 1, "num_negatives", self.num_negatives, "1 or more")
        require(0 <= self.calibration <= 1, "calibration", self.calibration, "a number in [0, 1]")

    @property
    def negatives_per_position(self) -> int:
        """Negatives sampled for each position; 0 for losses that sample none."""
        return self.num_negatives or _NUM_NEGATIVES.get(self.loss, 0)

    def require_no_next_item(self, recommender: str) -> None:
        """Refuse settings of this loss with a recommender that is trained on pairs of a user and an item.

        Args:
            recommender: Its name.

        Raises:
            UserError: A setting is not the default.
        """
        for item in fields(NextItemConfig):
            value, default = getattr(self, item.name), _default(item.name)
            expected = f"{default} with {recommender}: only a sequence recommender such as sasrec reads it"
            require(value == default, item.name, value, expected)


_READ_BY: dict[str, tuple[str, ...]] = {
    "logq": ("inbatch",),
    "duplicates": ("inbatch",),
    "negatives": ("inbatch",),
    "num_negatives": ("bce", "gbce", "sampled"),
    "calibration": ("gbce",),
}


def _default(name: str) -> object:
    return getattr(NextItemConfig, name)  # a dataclass keeps defaults as class variables
