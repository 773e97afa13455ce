"""Which epoch is kept, and when to stop: after so many evaluations without a better one."""

from dataclasses import dataclass

from ptmrec_dist.config import Keep


@dataclass
class EarlyStopping:
    """Remembers what is kept so far; unrounded values are compared."""

    patience: int
    """Evaluations without a better value before stopping."""
    keep: Keep = "best"
    """best: the epoch of the highest value; last: the latest, and training continues to its end."""
    after: int = 0
    """Last epoch whose evaluation does not count against patience."""
    kept: float | None = None
    """Value of the epoch that is kept."""
    kept_epoch: int = -1
    """The epoch that is kept."""
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
        keeps = self.keep == "last" or self.kept is None or value > self.kept
        if keeps:
            self.kept, self.kept_epoch, self.stale = value, epoch, 0
        elif epoch > self.after:
            self.stale += 1
        return keeps

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.stale >= self.patience
