"""Which epoch is kept, and when to stop: after a number of evaluations without a better one.

The longer a run took to its best epoch, the longer are its plateaus: with `growth`, patience rises in proportion to the number
of evaluations up to the best one. A fixed number ends slow learners on their first plateau, or trains fast ones for nothing.
"""

from dataclasses import dataclass

from ptmrec_dist.config import Keep


@dataclass
class EarlyStopping:
    """Remembers what is kept so far; unrounded values are compared."""

    patience: int
    """Evaluations without a better value before stopping, at least."""
    keep: Keep = "best"
    """best: the epoch of the highest value; last: the latest, and training continues to its end."""
    after: int = 0
    """Last epoch whose evaluation does not count against patience."""
    growth: float = 0.0
    """What is added to patience, as a fraction of the evaluations up to the one that is kept."""
    kept: float | None = None
    """Value of the epoch that is kept."""
    kept_epoch: int = 0
    """The epoch that is kept; before any evaluation the start."""
    evaluations: int = 0
    """Evaluations so far."""
    kept_evaluation: int = 0
    """Number of the evaluation that is kept, counted from 1."""
    stale: int = 0
    """Evaluations since then that count."""

    def update(self, value: float, epoch: int) -> bool:
        """Take note of an evaluation.

        Args:
            value: Higher is better.
            epoch: Epoch that it belongs to.

        Returns:
            Whether it is to be kept.
        """
        self.evaluations += 1
        keeps = self.keep == "last" or self.kept is None or value > self.kept
        if keeps:
            self.kept, self.kept_epoch, self.stale = value, epoch, 0
            self.kept_evaluation = self.evaluations
        elif epoch > self.after:
            self.stale += 1
        return keeps

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.stale >= self.patience + int(self.growth * self.kept_evaluation)
