"""Sequence recommenders: a user is the state after the latest items.

An item has one vector, from its ID, its features or both. The user encoder reads it, and what is scored is computed from it:

    vectors_ID = recommender.item_vectors(features)
    states_BLD = recommender.states(F.embedding(histories.items, vectors_ID), histories.mask)
    scores_BI = recommender.score(states_BLD[:, -1], recommender.candidates(vectors_ID))

Shape suffixes: B queries or batch rows, C chosen items, I items, K items of a row, L items of a history, D width of the
vectors, S width of states, N width of what is scored.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.base import Inputs, Queries, Recommender, Tables
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.rows import Features, rows_of

ITEMS = "items"
"""Name of the vectors that histories are read by."""


class SequenceRecommender(Recommender):
    """A recommender whose user encoder reads the vectors of a history, oldest first, and gives a state after each.

    Stage 1 trains it to predict every item of a sequence from those before (`training/objectives/sequence.py`). The state
    after an empty history is 0, so that all items score the same.

    Args:
        inputs: What it is built from; nothing but the number of items and, if it reads them, the features count.
        config: Hyper-parameters.
    """

    parts: ClassVar[Mapping[str, str]] = {}
    """Prefixes of the names in the state dict, each to the part that other data can take over: `text`, `image`, `fusion`,
    `user`."""
    reads_tokens: ClassVar[bool] = False
    """Whether it makes vectors of an encoder's tokens, where the encoder is trained along: by a method `fuse`."""

    def __init__(self, inputs: Inputs, config: SequenceConfig) -> None:
        super().__init__(inputs)
        self.history_length = config.length

    @property
    def reads_cold_items(self) -> bool:
        """True where `tables` computes vectors of items from their features."""
        return self.multimodal

    @abstractmethod
    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Compute the vectors of items, as the user encoder reads them.

        Args:
            features: Features of these items in their order, [C, d_m] by modality; ID-only recommenders ignore it.
            chosen: Item indices, int64 [C]; by default all.

        Returns:
            [C, D].
        """

    def views(self, features: Features, chosen: Tensor | None = None) -> dict[str, Tensor]:
        """Compute all vectors of items that the objective reads: by default those that histories are read by.

        Args:
            features: As for `item_vectors`.
            chosen: As for `item_vectors`.

        Returns:
            `ITEMS`, and others by name, [C, D] each.
        """
        return {ITEMS: self.item_vectors(features, chosen)}

    def modal_vectors(self, features: Features) -> dict[str, Tensor]:
        """Compute what is scored of items by one modality alone (eq. 12 of PTMRec).

        Args:
            features: As for `item_vectors`.

        Returns:
            Modality to [C, N].

        Raises:
            UserError: The recommender has no such vectors.
        """
        raise UserError(
            f"stage1: got a run of {type(self).__name__}, which scores no modality alone, by which stage 2 transfers "
            "knowledge; expected one of morec or pmmrec"
        )

    def candidates(self, vectors_CD: Tensor) -> Tensor:
        """Compute what is scored of items; by default the vectors that the user encoder reads.

        Args:
            vectors_CD: What `item_vectors` returned, [C, D].

        Returns:
            [C, N]; by default N is S, and the score is the dot product with a state.
        """
        return vectors_CD

    @abstractmethod
    def encode(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Encode histories; the state after an item must depend neither on later items nor on padding.

        Args:
            items_BLD: Vectors of the items, 0 where there is padding, [B, L, D]; L is at most `history_length`.
            mask_BL: Whether there is an item, bool [B, L]; padding is on the left.

        Returns:
            The state after each item, finite also where there is padding, [B, L, S].
        """

    def states(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Compute the state after every item of histories.

        Args:
            items_BLD: Vectors of the items, any where there is padding, [B, L, D].
            mask_BL: Whether there is an item, bool [B, L].

        Returns:
            [B, L, S]; 0 where there is padding.
        """
        taken_BL1 = mask_BL[:, :, None]
        return self.encode(items_BLD * taken_BL1, mask_BL) * taken_BL1

    def last_state(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Compute the state after whole histories, the last one that `states` returns.

        Args:
            items_BLD: Vectors of the items, any where there is padding, [B, L, D].
            mask_BL: Whether there is an item, bool [B, L].

        Returns:
            [B, S]; 0 where there is no item.
        """
        return self.states(items_BLD, mask_BL)[:, -1]

    def tables(self, features: Features) -> Tables:
        """Compute the vectors of all items, `items` [I, D]."""
        return {ITEMS: self.item_vectors(features)}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute the states after whole histories, [B, S]; indices of users are not read."""
        histories = queries.histories
        if histories is None:
            raise ValueError(f"{type(self).__name__} knows users by their histories: queries must have some")
        return self.last_state(F.embedding(histories.items, tables[ITEMS]), histories.mask)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Look up what is scored of items, [C, N]; features enter through the tables alone."""
        return self.candidates(rows_of(tables[ITEMS], chosen))

    def score_own(self, users_BS: Tensor, items_BKN: Tensor) -> Tensor:
        """Score items of its own for every user.

        Args:
            users_BS: States, [B, S].
            items_BKN: What is scored of the items of each, [B, K, N].

        Returns:
            [B, K].
        """
        return torch.vmap(lambda user_S, items_KN: self.score(user_S[None], items_KN)[0])(users_BS, items_BKN)


class IDSequenceRecommender(SequenceRecommender):
    """A sequence recommender whose vectors of items are a table of IDs.

    Args:
        inputs: What it is built from.
        config: Hyper-parameters.
    """

    multimodal: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: SequenceConfig) -> None:
        super().__init__(inputs, config)
        self.item_embeddings = embedding_table(inputs.num_items, config.dim)

    def item_vectors(self, features: Features, chosen: Tensor | None = None) -> Tensor:
        """Look up items, [C, D]."""
        return rows_of(self.item_embeddings.weight, chosen)
