"""What is ranked in a part of a data set: whose positives, among which items."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from ptmrec_dist.data.histories import Histories
from ptmrec_dist.data.manifest import Members
from ptmrec_dist.evaluation.ranking import Ranked, rank_positives
from ptmrec_dist.evaluation.scoring import Scorer


@dataclass(frozen=True)
class Task:
    """What is ranked in a part of a data set."""

    scorer: Scorer
    """Users, items and their score."""
    positives: Histories
    """Relevant items of each user."""
    seen: Histories | None
    """Items that are left out of the ranking."""
    candidates: np.ndarray | None
    """Items that are ranked, int64; None for all."""
    users: range
    """Users that items are ranked for."""

    def of(self, members: Members) -> "Task":
        """Restrict what is ranked to the users and items of a source.

        Args:
            members: Users and items.

        Returns:
            What is ranked for these users among these items.
        """
        items = np.arange(members.items.start, members.items.stop)
        chosen = items if self.candidates is None else np.intersect1d(self.candidates, items, assume_unique=True)
        return replace(self, candidates=chosen, users=members.users)

    def rank(self, user_range: tuple[int, int] | None = None) -> Ranked:
        """Rank the positives.

        Collective where the scorer's items are cut over ranks: all rank the positives of all users, each among its own items,
        and return those of their range.

        Args:
            user_range: First user and one past the last: those of them that belong to the task; by default all.

        Returns:
            Each positive with its rank.
        """
        first, end = user_range or (self.users.start, self.users.stop)
        first = max(first, self.users.start)
        own = (first, max(first, min(end, self.users.stop)))
        if self.scorer.cut is None:
            return rank_positives(self.scorer, self.positives, self.seen, candidates=self.candidates, user_range=own)
        every = (self.users.start, self.users.stop)
        found = rank_positives(self.scorer, self.positives, self.seen, candidates=self.candidates, user_range=every)
        return found.of(*own)

    @property
    def is_empty(self) -> bool:
        """Whether these users have no positives."""
        starts = self.positives.starts
        return bool(starts[self.users.start] == starts[self.users.stop])


def with_all_sources(found: Mapping[str, Ranked]) -> dict[str, Ranked]:
    """Add parts of all sources of a merged data set together, before those of each.

    Args:
        found: Part of each source (`validation.films`) to its positives, in the order of the sources.

    Returns:
        The same, and `validation` with the positives of all, in the order of the users.
    """
    wholes: dict[str, list[Ranked]] = {}
    for part, ranked in found.items():
        wholes.setdefault(part.partition(".")[0], []).append(ranked)
    joined = {
        whole: Ranked(*(np.concatenate([getattr(one, item.name) for one in parts]) for item in fields(Ranked)))
        for whole, parts in wholes.items()
    }
    return {**joined, **found}
