"""Which users an item is for: the same scores as in their lists, sorted by user.

Legend: U users, I items, N items asked about, K users wanted, D width of the scores.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import Score, table_scorer, top_items
from ptmrec_dist.serving.vectors import UserVectors

_BLOCK = 4096
"""Users whose vectors are computed at once."""


class Audience:
    """Finds the users with the highest scores for an item.

    Args:
        vectors: Vectors of users.
        num_users: Number of users U.
        taken: Training interactions.
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

    def search(self, items_N: Sequence[int], k: int, exclude_seen: bool) -> tuple[Tensor, Tensor]:
        """Find the users with the highest scores, full ones for warm items and cold ones for the others.

        Args:
            items_N: Item indices.
            k: Users per item K.
            exclude_seen: Leave out the users who took an item in training.

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
        scorer = table_scorer(vectors_ND, self._users_UD, lambda items_BD, users_CD: self._score(users_CD, items_BD).T)
        seen = Histories(self._takers.of(items), len(items), self._num_users) if exclude_seen else None
        return top_items(scorer, np.arange(len(items)), seen, k)

    @cached_property
    def _takers(self) -> Histories:
        """The users of each item: items stand in for users here, and users for items."""
        return Histories(Interactions(self._taken.items, self._taken.users), len(self._items_ID), self._num_users)

    @cached_property
    def _users_UD(self) -> Tensor:
        blocks = np.array_split(np.arange(self._num_users), -(-self._num_users // _BLOCK))
        return torch.cat([self._vectors.known(users) for users in blocks])
