"""Which users an item is for: the same scores as in their lists, sorted by user.

Legend: U users, I items, N items asked about, K users wanted, B users of a block, D width of the scores.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import NO_ITEM, Score, table_scorer, top_items
from ptmrec_dist.serving.vectors import UserVectors

_BLOCK = 4096
"""Users whose vectors are computed at once."""
_KEPT_BYTES = 2**28
"""Vectors that are kept for later requests: to compute those of a recommender that reads histories takes long."""


class Audience:
    """Finds the users with the highest scores for an item, block by block of users.

    Args:
        vectors: Vectors of users.
        num_users: Number of users U.
        taken: All known interactions.
        items_ID: Vectors of the full score, float32 [I, D].
        modal_items_ID: Vectors of the cold score, float32 [I, D]; None for a recommender that reads no features.
        warm: Whether an item occurred in training, bool [I].
        score: Score of users and items.
    """

    def __init__(
        self,
        vectors: UserVectors,
        num_users: int,
        taken: Interactions,
        items_ID: Tensor,
        modal_items_ID: Tensor | None,
        warm: np.ndarray,
        score: Score,
    ) -> None:
        self._vectors, self._num_users, self._score = vectors, num_users, score
        self._taken = taken
        self._items_ID, self._modal_items_ID, self._warm = items_ID, modal_items_ID, warm
        self._kept: dict[int, Tensor] = {}
        self._room = _KEPT_BYTES

    def search(self, items_N: Sequence[int], k: int, exclude_seen: bool) -> tuple[Tensor, Tensor]:
        """Find the users with the highest scores, full ones for warm items and cold ones for the others.

        Args:
            items_N: Item indices.
            k: Users per item K.
            exclude_seen: Leave out the users who took an item.

        Returns:
            User indices int64 [N, K] and scores float32 [N, K], best first; `NO_ITEM` and -inf where no more are left.

        Raises:
            UserError: An item without interactions, of a recommender that knows items by their ids only.
        """
        items = np.asarray(items_N, dtype=np.int64)
        warm_N1 = torch.from_numpy(self._warm[items])[:, None]
        if self._modal_items_ID is None and not bool(warm_N1.all()):
            raise UserError("item_id: got an item without interactions, but this model knows items by their IDs only")
        vectors_ND = self._items_ID[items]
        if self._modal_items_ID is not None:
            vectors_ND = vectors_ND.where(warm_N1, self._modal_items_ID[items])
        takers = self._takers.of(items) if exclude_seen else None
        users_NK = torch.full((len(items), k), NO_ITEM)
        scores_NK = torch.full((len(items), k), -torch.inf)
        for start in range(0, self._num_users, _BLOCK):
            users_NB, scores_NB = self._best_of_block(start, vectors_ND, k, takers)
            # Stable, and earlier blocks first: ties by user index, as in lists by item index.
            scores, order = torch.cat([scores_NK, scores_NB], dim=1).sort(dim=1, descending=True, stable=True)
            scores_NK = scores[:, :k]
            users_NK = torch.cat([users_NK, users_NB], dim=1).gather(1, order[:, :k])
        return users_NK, scores_NK

    def _best_of_block(
        self, start: int, vectors_ND: Tensor, k: int, takers: Interactions | None
    ) -> tuple[Tensor, Tensor]:
        """The best users of a block for each item, and their scores; `takers` has rows, and the users to leave out in them."""
        users_BD = self._users_from(start)
        number, size = len(vectors_ND), len(users_BD)
        seen = None
        if takers is not None:
            here = (takers.items >= start) & (takers.items < start + size)
            seen = Histories(Interactions(takers.users[here], takers.items[here] - start), number, size)
        # Items stand in for users here, and users for items.
        scorer = table_scorer(vectors_ND, users_BD, lambda items_BD, users_CD: self._score(users_CD, items_BD).T)
        found, scores = top_items(scorer, np.arange(number), seen, min(k, size))
        return found.where(found == NO_ITEM, found + start), scores

    def _users_from(self, start: int) -> Tensor:
        """Vectors of the users of a block, [B, D]."""
        if start in self._kept:
            return self._kept[start]
        users_BD = self._vectors.known(np.arange(start, min(start + _BLOCK, self._num_users)))
        if users_BD.nbytes <= self._room:
            self._room -= users_BD.nbytes
            self._kept[start] = users_BD
        return users_BD

    @cached_property
    def _takers(self) -> Histories:
        """The users of each item, in the place of the items of each user."""
        return Histories(Interactions(self._taken.items, self._taken.users), len(self._items_ID), self._num_users)
