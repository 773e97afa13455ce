"""When to stop: after so many evaluations without a better one."""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Remembers the best value so far; unrounded values are compared."""

    patience: int
    """Evaluations without a better value before stopping."""
    best: float | None = None
    """Best value so far."""
    best_epoch: int = -1
    """Epoch of the best value."""
    stale: int = 0
    """Evaluations since the best one."""

    def update(self, value: float, epoch: int) -> bool:
        """Take note of an evaluation.

        Args:
            value: Higher is better.
            epoch: Epoch that it belongs to.

        Returns:
            Whether it is the best so far.
        """
        improved = self.best is None or value > self.best
        if improved:
            self.best, self.best_epoch, self.stale = value, epoch, 0
        else:
            self.stale += 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.stale >= self.patience
