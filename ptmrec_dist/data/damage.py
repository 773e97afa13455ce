"""How much unreadable content a run tolerates: items are skipped, counted and logged, up to a budget."""

import logging
from dataclasses import dataclass

from ptmrec_dist.errors import Fault

_log = logging.getLogger(__name__)


@dataclass
class DamageBudget:
    """Counts items that could not be read."""

    fraction: float | None
    """Largest fraction of the items that may be lost, in [0, 1) (`--max_damaged`); None: none, without such an option."""
    total: int
    """Items that were expected."""
    lost: int = 0
    """Items lost so far."""

    def spend(self, items: int, reason: str) -> None:
        """Count lost items.

        Args:
            items: How many.
            reason: Which, and why.

        Raises:
            Fault: More are lost than the budget allows.
        """
        self.lost += items
        if self.lost > (self.fraction or 0) * self.total:
            allowed = "" if self.fraction is None else f", more than --max_damaged {self.fraction:g} allows"
            raise Fault(
                f"shards: {self.lost} of {self.total} items cannot be read ({reason}){allowed}; restore the shards or "
                "pack again"
            )
        _log.warning("shards: skipping %d items (%s); %d of %d are lost so far", items, reason, self.lost, self.total)
