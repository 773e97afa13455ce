"""The interface between recommenders and the code that trains, tunes, evaluates or serves them.

A user is a query: an index, or a history of items, or both. `tables` computes once what all queries read, `users` and `items`
compute vectors from that, and `score` compares them:

    tables = recommender.tables(features)
    scores_BI = recommender.score(recommender.users(queries, tables), recommender.items(features, tables))

Shape suffixes: B queries or batch rows, C chosen items, I items, D width of scored vectors, d width of the ID-only ones,
d_m width of a modality's features.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.config.recommenders import multimodal_recommenders
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.rows import RowTable, own_rows, row_tables
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.rows import FeatureRows, Features

Tables = Mapping[str, Tensor]
"""What a recommender computes once for all queries; only the recommender knows the meaning of the entries."""

LinearMap = tuple[Tensor, Tensor | None]
"""W [D, d_m] and b [D] of x -> W x + b; None for no b."""


@dataclass(frozen=True)
class Inputs:
    """What a recommender is built from; determines the shapes of its tables and graphs."""

    num_users: int
    """Number of users U."""
    num_items: int
    """Number of items I, those without a training interaction included."""
    train: Interactions
    """Training interactions, the only ones that graphs may contain."""
    features: Features
    """Features of the modalities to use, where tables are cut those of this rank's items; empty for ID-only recommenders."""
    cache: Path | None = None
    """Folder that caches costly results computed from features, under keys of their content; by default none."""
    world: World | None = None
    """Ranks that compute these together and must all build the recommender; by default each process computes all."""
    owners: World | None = None
    """Ranks that tables of IDs and features are cut over by rows; by default each process holds them whole."""

    def warm_items(self) -> Tensor:
        """Return the rows of `features` of items with training interactions, int64, in ascending order."""
        own = own_rows(self.num_items, self.owners)
        items = torch.tensor(self.train.items).unique()
        own_items: Tensor = items[(items >= own.start) & (items < own.stop)] - own.start
        return own_items


@dataclass(frozen=True)
class Queries:
    """Users to compute vectors for."""

    users: Tensor
    """User indices, int64 [B]; -1 for a visitor, whose history is all that is known."""
    histories: PaddedHistories | None = None
    """Their most recent items, [B, L]; None unless the recommender has a `history_length` L."""


@dataclass(frozen=True)
class Batch:
    """Rows to train on."""

    users: Tensor
    """User indices, int64 [B]."""
    positives: Tensor
    """An item that the user interacted with, int64 [B]."""
    negatives: Tensor
    """An item that the user did not interact with, int64 [B]."""
    histories: PaddedHistories | None = None
    """What the user interacted with before the positive item, [B, L]; None unless the recommender has a `history_length`."""

    @property
    def queries(self) -> Queries:
        """The users of the rows."""
        return Queries(self.users, self.histories)


class Recommender(nn.Module, ABC):
    """A model that scores items for users.

    A subclass takes `Inputs` and the hyper-parameters of its row in `config/recommenders.py`. Graphs are rebuilt from
    the inputs and are not part of the state dict. Feature tables are never normalised or trained here: they are passed as
    `features`, and their owner decides both.
    """

    multimodal: ClassVar[bool]
    """Whether the recommender reads features."""
    vectors_from_ids: ClassVar[bool] = False
    """Whether vectors of users and items come from IDs alone although it reads features: those only say which items are
    similar."""
    required_modalities: ClassVar[tuple[str, ...]] = ()
    """Modalities without any of which it cannot be built; by default one of image and text is enough."""
    propagates_features: ClassVar[bool] = True
    """Whether `tables` reads features: stage 2 then has to copy whole tables, with the batch's new rows, and compute `tables`
    from them in every step. If not, nothing in a step reads features of items outside the batch."""
    trains_features: ClassVar[bool] = True
    """Whether gradients reach the features that it reads."""
    cuts_tables: ClassVar[bool] = False
    """Whether it can be built with `owners`: `loss` and `users` look rows of IDs up by calling their tables, nothing reads
    features of items outside the batch, vectors of items are those of this rank's, as the first of `item_rows` is cut, and
    `fit_cold_map` takes sums over the ranks."""
    starts_from_factors: ClassVar[bool] = False
    """Whether it has `start_from`: it has embeddings of IDs, and `collaborative` follows from them alone."""
    history_length: int = 0
    """Most recent items of a user that queries and batches must provide L; 0 if a user is an index, and a visitor's vector
    is estimated from those of users with similar histories."""
    user_rows: ClassVar[tuple[str, ...]] = ("user_embeddings.weight",)
    """Names in the state dict, where they occur, of tables with a row for each user: a run on other data takes over the rows
    of the users that both have."""
    item_rows: ClassVar[tuple[str, ...]] = ("item_embeddings.weight",)
    """The same for items."""
    rebuilt: ClassVar[tuple[str, ...]] = ()
    """Names in the state dict of what `rebuild` computes, which a run on other data does not take over."""

    def __init__(self, inputs: Inputs) -> None:
        """Store the modalities in use."""
        super().__init__()
        self.modalities: tuple[str, ...] = tuple(inputs.features)

    def tables(self, features: Features) -> Tables:
        """Compute what does not depend on the queries, such as propagated vectors; by default nothing.

        Args:
            features: Tables of the modalities in use; ID-only recommenders ignore it.

        Returns:
            What the other methods read for the current weights.
        """
        return {}

    @abstractmethod
    def users(self, queries: Queries, tables: Tables) -> Tensor:
        """Compute the vectors of users, each independent of the other queries.

        Args:
            queries: The users.
            tables: What `tables` returned.

        Returns:
            [B, D].
        """

    @abstractmethod
    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        """Compute the vectors of items.

        Args:
            features: Features of these items in their order, float32 [C, d_m] by modality.
            tables: What `tables` returned.
            chosen: Item indices, int64 [C]; by default all, and C is I.

        Returns:
            [C, D].
        """

    def score(self, users_BD: Tensor, items_CD: Tensor) -> Tensor:
        """Score items for users: by default the dot product.

        Args:
            users_BD: Vectors of users, float32 [B, D].
            items_CD: Vectors of items, float32 [C, D].

        Returns:
            Higher is better, float32 [B, C], in memory of its own.
        """
        return users_BD @ items_CD.T

    @property
    def cut_items(self) -> RowTable | None:
        """The table of items where it is cut over ranks: `items` then computes vectors of this rank's items."""
        return row_tables(self).get(self.item_rows[0]) if self.item_rows else None

    @property
    def reads_cold_items(self) -> bool:
        """Whether histories may have items without training interactions, whose vectors then come from their features."""
        return False

    @property
    def has_own_score(self) -> bool:
        """Whether the score is not the dot product."""
        return type(self).score is not Recommender.score

    @property
    def id_columns(self) -> int | None:
        """Number of leading columns of the vectors of users and items that come from IDs alone, all others from features alone.

        A score is then the sum of what IDs and what features contribute. None where it is no such sum.
        """
        return None

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        """Compute the objective, row by row; a sequence recommender has none: it is trained on whole sequences.

        Args:
            batch: The rows.
            tables: What `tables` returned for the current weights.
            features: Features of the batch's items by modality in use, as `row_gaps` and `[items]` read them.

        Returns:
            Named terms, weights included, float32 [B] each. The objective is the mean over the rows of their sum.

        Raises:
            NotImplementedError: The recommender has none.
        """
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def collaborative(self, queries: Queries, tables: Tables, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the vectors that come from IDs alone (eq. 11 of PTMRec), propagated if the model does so.

        By default all vectors, of a recommender that reads no features or has `vectors_from_ids`.

        Args:
            queries: The users.
            tables: What `tables` returned.
            chosen: Item indices, int64 [C]; by default all.

        Returns:
            Users [B, d] and items [C, d]; the score of a pair is their dot product.

        Raises:
            UserError: The recommender reads features and has no such vectors.
        """
        if self.multimodal and not self.vectors_from_ids:
            raise UserError(
                f"teacher_scores: got id, but {type(self).__name__} has no vectors that come from IDs alone; choose whole"
            )
        return self.users(queries, tables), self.items({}, tables, chosen)

    def cold_map(self) -> dict[str, LinearMap]:
        """Return the map from each modality's features to the space of item vectors (eq. 12 of PTMRec).

        Some term of the objective must train the maps, or `fit_cold_map` must fit them.

        Returns:
            Modality to W [D, d_m] and b [D].

        Raises:
            UserError: The recommender is ID-only, or its vectors of items are no such maps.
        """
        if self.multimodal:
            raise UserError(
                f"recommender: got {type(self).__name__}, whose item vectors are no linear maps of features, which knowledge "
                "transfer in stage 2 needs; expected a recommender that has them, such as vbpr"
            )
        raise UserError(
            f"recommender: got {type(self).__name__}, which knows items by their IDs only; expected one that "
            f"reads images or texts: {multimodal_recommenders()}"
        )

    def fit_cold_map(self, features: Features) -> None:
        """Fit the maps that score cold items, if the objective does not train them; does nothing by default.

        Call it with the weights that are to be evaluated or kept.

        Args:
            features: Tables of the modalities in use, [I, d_m].
        """

    def cold_items(self, features: Features) -> Tensor:
        """Compute the vectors of items without interactions, whose ID embeddings are untrained.

        Args:
            features: Features of these items, float32 [C, d_m] by modality.

        Returns:
            By default the mean over modalities of their mapped features, [C, D].

        Raises:
            UserError: The recommender is ID-only.
        """
        maps = self.cold_map()
        return torch.stack([F.linear(features[modality], *maps[modality]) for modality in self.modalities]).mean(dim=0)

    def start_from(self, users_UD: Tensor, items_ID: Tensor) -> None:
        """Set the embeddings of IDs so that `collaborative` returns given vectors, nearly.

        Args:
            users_UD: Vectors of users, float32 [U, d].
            items_ID: Vectors of items, float32 [I, d].

        Raises:
            NotImplementedError: The recommender is none that `starts_from_factors`.
        """
        raise NotImplementedError(f"{type(self).__name__}.start_from")

    def rebuild(self, features: Features, world: World | None = None) -> None:
        """Recompute the part of the state that is derived from weights and features once per epoch, before its first step.

        An interrupted epoch resumes with the state that was saved: this is not called again. Does nothing by default.

        Collective where `world` is given: every rank must call this, and has the same state afterwards.

        Args:
            features: Tables of the modalities in use, [I, d_m].
            world: Ranks that compute together; by default this process computes alone.
        """

    def start_epoch(self, generator: Generator) -> None:
        """Resample what the model samples once per epoch, also where an interrupted epoch resumes; does nothing by default.

        Args:
            generator: Source of randomness, on any device.
        """

    def finish_step(self) -> None:
        """Update state that follows the weights, after an optimiser step; does nothing by default."""
