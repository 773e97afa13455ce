"""Which items a list is chosen from: those with interactions, those without, all, or some that the request names.

Legend: C candidates, I items, D width of the scores.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from torch import Tensor

from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import Score
from ptmrec_dist.serving.filters import fulfilling
from ptmrec_dist.serving.ids import IdIndex
from ptmrec_dist.serving.index import ExactIndex, Index
from ptmrec_dist.serving.params import Params


class Catalogue:
    """The items of a model, with an index over those that a request chooses from.

    Args:
        item_ids: Item ids by item index.
        attributes: Columns of the catalogue that requests may filter by, as text.
        warm: Whether an item occurred in training, bool [I].
        index: Index of the warm items by the full score.
        items_ID: Vectors of the full score, float32 [I, D].
        modal_items_ID: Vectors of the cold score, float32 [I, D]; None for a recommender that reads no features.
        score: Score of users and items.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        attributes: pl.DataFrame,
        warm: np.ndarray,
        index: Index,
        items_ID: Tensor,
        modal_items_ID: Tensor | None,
        score: Score,
    ) -> None:
        self._ids = IdIndex(item_ids, "items")
        self._attributes = attributes
        self._warm, self._index, self._score = warm, index, score
        self._items_ID, self._modal_items_ID = items_ID, modal_items_ID

    def choose(self, params: Params) -> tuple[Index, Tensor]:
        """Choose what a request's lists are made from.

        Args:
            params: Parameters of the request.

        Returns:
            The model's own index, or an exact one over other items, and the vectors that it compares, float32 [I, D].

        Raises:
            UserError: Cold candidates of a recommender that knows items by their ids only; unknown ids under
                `unknown="error"`; as in `filters.fulfilling`.
        """
        if params.candidates == "warm" and not params.exclude and not params.filters:
            return self._index, self._items_ID
        chosen_I = self._chosen(params)
        by_full_score = params.candidates in ("warm", "items") and not (chosen_I & ~self._warm).any()
        vectors_ID = self._items_ID if by_full_score else self._modal_vectors(params)
        chosen_I = chosen_I & ~self._named("exclude", params)
        if params.filters:
            chosen_I &= fulfilling(params.filters, self._attributes)
        return ExactIndex(vectors_ID, np.flatnonzero(chosen_I), self._score), vectors_ID

    def _chosen(self, params: Params) -> np.ndarray:
        """Which items are candidates, bool [I], before some are excluded."""
        if params.candidates == "items":
            return self._named("items", params)
        return {"warm": self._warm, "cold": ~self._warm, "all": np.ones_like(self._warm)}[params.candidates]

    def _modal_vectors(self, params: Params) -> Tensor:
        if self._modal_items_ID is None:
            raise UserError(
                f"candidates: got {params.candidates!r}, but this model knows items by their IDs only; expected those with "
                "interactions"
            )
        return self._modal_items_ID

    def _named(self, name: str, params: Params) -> np.ndarray:
        """Which items a parameter names, bool [I]."""
        ids: Sequence[str] = getattr(params, name)
        found = [self._ids.find(item) for item in ids]
        unknown = [item for item, index in zip(ids, found) if index is None]
        if unknown and params.unknown == "error":
            raise UserError(f"{name}: got {unknown[0]!r}, expected some of the {len(self._ids.ids)} items of the model")
        named_I = np.zeros_like(self._warm)
        named_I[[index for index in found if index is not None]] = True
        return named_I
