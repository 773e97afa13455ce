"""The interface between recommenders and the code that trains, tunes, evaluates or serves them.

Shape suffixes: B batch rows, C chosen items, U users, I items, E interactions, D width of scores, d and d' widths that
a model chooses for its ID-only and modal vectors, d_m width of a modality's features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.distributed import World
from ptmrec_dist.errors import UserError

Features = Mapping[str, Tensor]
"""Modality name (`image`, `text`) to its table, float32 [I, d_m], row = item index."""


class BatchRows:
    """The rows of a feature table that a batch reads, indexed like the table, which is not needed.

    Args:
        items_G: Items of the batch, int64 [G]; items may repeat.
        counted_G: Whether each row may be looked up, bool [G]; of an item's rows, the first counted one is used.
        rows_GD: Their features, float32 [G, d_m].
    """

    def __init__(self, items_G: Tensor, counted_G: Tensor, rows_GD: Tensor) -> None:
        self.rows_GD = rows_GD
        # Of an item's rows, the counted ones come first.
        self._keys_G, self._order_G = (2 * items_G + ~counted_G).sort(stable=True)

    def positions(self, items: Tensor) -> Tensor:
        """Find the rows of items, without device synchronisation.

        Args:
            items: Item indices, int64, any shape.

        Returns:
            Row of each in `rows_GD`, the same shape; G, an invalid index, for an item that is not in the batch.
        """
        found = torch.searchsorted(self._keys_G, 2 * items).clamp(max=len(self._keys_G) - 1)
        return self._order_G[found].where(self._keys_G[found] // 2 == items, len(self._keys_G))

    def __getitem__(self, items: Tensor) -> Tensor:
        """Look up items.

        Args:
            items: Items of the batch, int64 [*].

        Returns:
            float32 [*, d_m].

        Raises:
            IndexError: An item is not in the batch.
        """
        return self.rows_GD[self.positions(items)]


FeatureRows = Mapping[str, Tensor | BatchRows]
"""Modality name to an object that `[items]` indexes, giving float32 [*, d_m]: its table, or the rows of a batch's items."""


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
    """Features of the modalities to use; empty for ID-only recommenders."""
    cache: Path | None = None
    """Folder that caches costly results computed from features, under keys of their content; by default none."""
    world: World | None = None
    """Ranks that compute these together and must all build the recommender; by default each process computes all."""


class Recommender(nn.Module, ABC):
    """A model that scores an item for a user by a dot product.

    A subclass takes `Inputs` and the hyper-parameters of its row in `config/recommenders.py`. Graphs are rebuilt from
    the inputs and are not part of the state dict. Feature tables are never normalised or trained here: they are passed as
    `features`, and their owner decides both.
    """

    propagates: ClassVar[bool]
    """Whether the loss reads propagated tables; if not, it reads its batch's rows only and `representations` may be None."""
    multimodal: ClassVar[bool]
    """Whether the recommender reads features."""
    propagates_features: ClassVar[bool] = True
    """Whether `propagate` or `modal_users` reads features: stage 2 then has to copy whole tables, with the batch's new
    rows, and propagate them in every step. If not, nothing in a step reads features of items outside the batch."""

    def __init__(self, inputs: Inputs) -> None:
        """Store the modalities in use."""
        super().__init__()
        self.modalities: tuple[str, ...] = tuple(inputs.features)

    @abstractmethod
    def representations(self, features: Features) -> tuple[Tensor, Tensor]:
        """Compute the vectors whose dot products are the scores.

        Args:
            features: Tables of the modalities in use; ID-only recommenders ignore it.

        Returns:
            Users [U, D] and items [I, D]; the score of a pair is their dot product.
        """

    def batch_representations(self, items: Tensor, rows: Features) -> tuple[Tensor, Tensor]:
        """Compute the representations of some items from their own features; only where `propagates_features` is False.

        A recommender whose `representations` reads features must override it.

        Args:
            items: Item indices, int64 [C].
            rows: Features of these items, in their order, float32 [C, d_m] by modality.

        Returns:
            Users [U, D] and items [C, D].
        """
        users_UD, items_ID = self.representations({})
        return users_UD, items_ID[items]

    def propagate(self, features: Features) -> tuple[Tensor, Tensor]:
        """Compute the tables that `loss` reads: by default the representations.

        Args:
            features: Tables of the modalities in use; ID-only recommenders ignore it.

        Returns:
            Users [U, *] and items [I, *].
        """
        return self.representations(features)

    @abstractmethod
    def loss(
        self,
        users_B: Tensor,
        positives_B: Tensor,
        negatives_B: Tensor,
        representations: tuple[Tensor, Tensor] | None,
        features: FeatureRows,
    ) -> dict[str, Tensor]:
        """Compute the objective, row by row.

        Args:
            users_B: User indices, int64 [B].
            positives_B: An item that the user interacted with, int64 [B].
            negatives_B: An item that the user did not interact with, int64 [B].
            representations: What `propagate` returned for the current weights; None only where `propagates` is False.
            features: Features of the batch's items by modality in use, as `row_gaps` and `[items]` read them.

        Returns:
            Named terms, weights included, float32 [B] each. The objective is the mean over the rows of their sum.
        """

    @abstractmethod
    def collaborative(self) -> tuple[Tensor, Tensor]:
        """Compute the representations that come from IDs alone (eq. 11 of PTMRec), propagated if the model does so.

        Returns:
            Users [U, d] and items [I, d].
        """

    def modal_users(self, features: Features) -> Tensor:
        """Compute the user vectors that projected features are compared with (eq. 12 of PTMRec).

        Args:
            features: Tables of the modalities in use, [I, d_m].

        Returns:
            Users [U, d'].

        Raises:
            UserError: The recommender is ID-only.
        """
        raise self._id_only()

    def modal_projection(self, modality: str) -> Callable[[Tensor], Tensor]:
        """Return the linear map from a modality's features to the space of `modal_users` (eq. 12 of PTMRec).

        Args:
            modality: One of `modalities`.

        Returns:
            The map, [*, d_m] -> [*, d'].

        Raises:
            UserError: The recommender is ID-only.
        """
        raise self._id_only()

    def fit_projections(self, features: Features) -> None:
        """Fit the maps that score cold items, if the objective does not train them; does nothing by default.

        Call it with the weights that are to be evaluated or kept.

        Args:
            features: Tables of the modalities in use, [I, d_m].
        """

    def cold_items(self, features: Features, items: Tensor) -> Tensor:
        """Compute the vectors of items without interactions, whose ID embeddings are untrained.

        Args:
            features: Tables of the modalities in use, [*, d_m]; they may hold other items than those of the training
                set.
            items: Rows of the tables, int64 [C].

        Returns:
            The mean over modalities of their projected features, [C, d'].

        Raises:
            UserError: The recommender is ID-only.
        """
        if not self.multimodal:
            raise self._id_only()
        projected = [self.modal_projection(modality)(features[modality][items]) for modality in self.modalities]
        return torch.stack(projected).mean(dim=0)

    def cold_representations(self, features: Features, items: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the vectors that score items without interactions.

        Args:
            features: Tables of the modalities in use, [I, d_m].
            items: Item indices, int64 [C].

        Returns:
            Users [U, d'] and items [C, d']; the score of a pair is their dot product.

        Raises:
            UserError: The recommender is ID-only.
        """
        return self.modal_users(features), self.cold_items(features, items)

    def start_epoch(self, generator: Generator) -> None:
        """Resample what the model samples once per epoch; does nothing by default.

        Args:
            generator: Source of randomness, on any device.
        """

    def finish_step(self) -> None:
        """Update state that follows the weights, after an optimiser step; does nothing by default."""

    def _id_only(self) -> UserError:
        return UserError(
            f"recommender: got {type(self).__name__}, which knows items by their IDs only; expected one that "
            "reads images or texts, choose vbpr, freedom, mgcn or smore"
        )


def embedding_table(rows: int, dim: int) -> nn.Embedding:
    """Create an ID table with Xavier's uniform initialisation.

    Args:
        rows: Number of users or items.
        dim: Width of a vector.

    Returns:
        The table, [rows, dim].
    """
    table = nn.Embedding(rows, dim)
    nn.init.xavier_uniform_(table.weight)
    return table


def modal_maps(features: Features, dim: int, bias: bool = False) -> nn.ModuleDict:
    """Create the linear maps W_m, with Xavier's uniform initialisation.

    Where scores are dot products with projected features, a bias would add the same constant to all of a user's scores, which
    changes no ranking, no difference of scores and no softmax over items.

    Args:
        features: Tables of the modalities, [I, d_m].
        dim: Width that features are mapped to.
        bias: Add a bias, zero at first.

    Returns:
        Modality to its map, [*, d_m] -> [*, dim].
    """
    maps = nn.ModuleDict()
    for modality, table in features.items():
        linear = nn.Linear(table.shape[1], dim, bias=bias)
        nn.init.xavier_uniform_(linear.weight)
        if bias:
            nn.init.zeros_(linear.bias)
        maps[modality] = linear
    return maps


def look_up(table_ND: Tensor, *rows_B: Tensor) -> tuple[Tensor, ...]:
    """Look up several lists of rows at once, so that the table gets one gradient instead of one per list.

    Args:
        table_ND: Any float32 table [N, D].
        *rows_B: Rows, int64 [B] each.

    Returns:
        float32 [B, D] for each list.
    """
    return F.embedding(torch.stack(rows_B), table_ND).unbind()


def row_gaps(table_ID: Tensor | BatchRows, positives_B: Tensor, negatives_B: Tensor) -> Tensor:
    """Subtract rows of a wide table without materialising either of them.

    Args:
        table_ID: float32 [I, D], or the rows of a batch.
        positives_B: Rows to subtract from, int64 [B].
        negatives_B: Rows to subtract, int64 [B].

    Returns:
        Differences, float32 [B, D].
    """
    pairs_B2 = torch.stack([positives_B, negatives_B], dim=1)
    if isinstance(table_ID, BatchRows):
        pairs_B2, table_ID = table_ID.positions(pairs_B2), table_ID.rows_GD
    signs_B2 = torch.linspace(1, -1, 2, device=table_ID.device).expand(len(positives_B), 2)
    return F.embedding_bag(pairs_B2, table_ID, mode="sum", per_sample_weights=signs_B2)


def bpr_term(users_BD: Tensor, gaps_BD: Tensor) -> Tensor:
    """Compute the Bayesian personalised ranking loss -log sigmoid(u . (p - n)).

    Args:
        users_BD: User vectors, float32 [B, D].
        gaps_BD: Vector of the positive item minus that of the negative one, float32 [B, D].

    Returns:
        The loss of each row, float32 [B].
    """
    return -F.logsigmoid((users_BD * gaps_BD).sum(dim=1))


def l2_term(*tables_BD: Tensor) -> Tensor:
    """Compute half the squared norm of all vectors of a row, 1/2 (|u|^2 + |p|^2 + |n|^2).

    Args:
        *tables_BD: Vectors, float32 [B, *]; their widths may differ.

    Returns:
        The penalty of each row, float32 [B].
    """
    return 0.5 * torch.stack([table.square().sum(dim=1) for table in tables_BD]).sum(dim=0)
