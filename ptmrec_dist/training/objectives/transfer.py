"""Stage 2: encoder and recommender learn together over the global batch, L = L_rec + kt_weight * L_KT (PTMRec section 2.4).

Each rank encodes its own items; features and item indices are gathered over the ranks with gradient; each rank computes
the rows of its own users against the items of all ranks.

Legend: B local items, G gathered items, R local rows (interactions), V users whose distributions are
compared, T tries, I items, D width.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.histories import PaddedHistories, RecentItems
from ptmrec_dist.data.pairs import TrainBatch
from ptmrec_dist.distributed import World, gather_rows, mean_over_ranks
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.recommenders.base import Batch, Queries, Recommender, Tables
from ptmrec_dist.recommenders.rows import BatchRows, Features
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.objectives.losses import hashed_choice, knowledge_transfer
from ptmrec_dist.training.objectives.tuned import TrainsEncoder

NEGATIVE_TRIES = 8
"""Candidates sampled for a row's negative; a row that finds none among them is left out of L_rec."""


@dataclass(frozen=True)
class TransferSettings:
    """Settings of the knowledge transfer."""

    weight: float = 0.0
    """Weight of L_KT; 0 trains without a teacher."""
    temperature: float = 1.0
    """Divides the scores of both distributions."""
    live_teacher: bool = False
    """The live model teaches, not the one that stage 1 left."""
    id_only: bool = False
    """The teacher's ID vectors alone score, not everything that it knows."""
    mask_known: bool = False
    """Other items that a user is known to like are left out of the user's distributions."""


class Transfer(TrainsEncoder):
    """Encoder and recommender, trained together on the global batch.

    Args:
        encoder: The encoder, with what is tuned inside it, running the towers whose features change; None keeps all features
            frozen and trains everything else.
        recommender: The recommender as stage 1 left it.
        features: Frozen features, float32 [I, d_m] by modality.
        known: Training positives.
        transfer: Settings of the knowledge transfer.
        seed: Seed of the negatives.
        rows: Most items that a rank contributes to a step S; the batch of a rank that has fewer is padded.
        has: Modality to which items have it, bool [I]; the stored features stand for what an item lacks, and the encoder
            learns nothing from it. By default every item has everything.
        recent: What each user interacted with before, if the recommender reads histories.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        recommender: Recommender,
        features: Features,
        known: KnownPositives,
        transfer: TransferSettings,
        seed: int,
        rows: int,
        has: Mapping[str, Tensor] | None = None,
        recent: RecentItems | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.recommender = encoder, recommender
        self.known, self.transfer, self.seed, self.rows = known, transfer, seed, rows
        self.features = dict(features)
        self.has = {modality: has_I for modality, has_I in (has or {}).items() if not has_I.all()}
        self.recent = recent
        frozen = bool(transfer.weight) and not transfer.live_teacher
        self.teacher = Teacher(recommender.eval(), self.features, transfer.id_only) if frozen else None

    def forward(self, batch: TrainBatch, step: int) -> dict[str, Tensor]:
        """Compute the named terms of the objective, each ready to be summed.

        Collective: every rank must call this.

        Args:
            batch: This rank's rows of the step, on this rank's device.
            step: Number of the step; with the seed it decides the negatives.

        Returns:
            Scalars whose mean over ranks is the mean over the rows of the global batch.
        """
        items_G, counted_G, features_G = self._gather(batch)
        rows = {modality: BatchRows(items_G, counted_G, rows_GD) for modality, rows_GD in features_G.items()}
        tables = self.features
        if self.recommender.propagates_features:
            tables = {
                modality: _with_live_rows(tables[modality], items_G, rows_GD, counted_G)
                for modality, rows_GD in features_G.items()
            }
        positives_R = batch.content.items[batch.columns]
        negatives_R, found_R = self._negatives(batch.users, positives_R, items_G, counted_G, step)
        histories = None if self.recent is None else self.recent.before(batch.interactions)
        computed = self.recommender.tables(tables)
        terms = self.recommender.loss(Batch(batch.users, positives_R, negatives_R, histories), computed, rows)
        losses = {name: mean_over_ranks(rows_R, found_R) for name, rows_R in terms.items()}
        if self.transfer.weight:
            queries, weights_V, counted_VG = self._queries(batch, histories, items_G, counted_G)
            total_V = self._transfer(queries, computed, items_G, features_G, counted_VG)
            losses["kt"] = self.transfer.weight * mean_over_ranks(total_V, weights_V)
        return losses

    def rebuild(self, world: World) -> None:
        """Let the recommender recompute what follows weights and features once per epoch."""
        self.recommender.rebuild(self.features, world)

    def _gather(self, batch: TrainBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Items and features of all ranks; rows that fill up do not count, and of an item that came twice only the first."""
        rows = self.encoded(batch.content)
        items_G = gather_rows(batch.content.items, self.rows, filler=-1)
        features_G = {modality: gather_rows(rows_BD, self.rows) for modality, rows_BD in rows.items()}
        counted_G = _first_copies(items_G) & (items_G >= 0)
        # Rows that fill up must point somewhere: to any item that is replaced anyway.
        return items_G.where(items_G >= 0, items_G.max().clamp(min=0)), counted_G, features_G

    def _negatives(
        self, users_R: Tensor, positives_R: Tensor, items_G: Tensor, counted_G: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """For every row another item of the global batch that its user is not known to like."""
        ordered_G = torch.where(counted_G, items_G, torch.iinfo(torch.int64).max).sort().values
        sampled_RT = hashed_choice(users_R, positives_R, counted_G.sum(), self.seed * 1_000_003 + step, NEGATIVE_TRIES)
        candidates_RT = ordered_G[sampled_RT]
        free_RT = ~self.known.contains(users_R[:, None], candidates_RT)
        chosen_R1 = free_RT.int().argmax(dim=1, keepdim=True)
        return candidates_RT.gather(1, chosen_R1).squeeze(1), free_RT.any(dim=1).float()

    def _queries(
        self, batch: TrainBatch, histories: PaddedHistories | None, items_G: Tensor, counted_G: Tensor
    ) -> tuple[Queries, Tensor, Tensor]:
        """Users whose distributions are compared, their weights [V], and the items that count, [V, G] or [1, G].

        A user's distribution is the same in all of the user's rows, unless known positives are masked or histories differ.
        """
        counted_VG = counted_G[None, :]
        if histories is None and not self.transfer.mask_known:
            return Queries(batch.distinct_users), batch.user_counts.float(), counted_VG
        if self.transfer.mask_known:
            own_VG = batch.content.items[batch.columns][:, None] == items_G
            counted_VG = counted_VG & (own_VG | ~self.known.contains(batch.users[:, None], items_G[None, :]))
        return Queries(batch.users, histories), torch.ones_like(batch.users, dtype=torch.float32), counted_VG

    def _transfer(
        self, queries: Queries, tables: Tables, items_G: Tensor, features_G: Features, counted_VG: Tensor
    ) -> Tensor:
        """L_KT of each query, [V]: the divergence of each modality's distribution over the items from the teacher's."""
        if self.teacher is None:
            teacher_VG = self._live_scores(queries, tables, items_G, features_G)
        else:
            teacher_VG = self.teacher(queries, items_G)
        users_VD = self.recommender.users(queries, tables)
        total_V = teacher_VG.new_zeros(len(teacher_VG))
        for modality, linear in self.recommender.cold_map().items():
            student_VG = self.recommender.score(users_VD, F.linear(features_G[modality], *linear))
            total_V = total_V + knowledge_transfer(student_VG, teacher_VG, counted_VG, self.transfer.temperature)
        return total_V

    @torch.no_grad()
    def _live_scores(self, queries: Queries, tables: Tables, items_G: Tensor, features_G: Features) -> Tensor:
        """Scores of the live model, [V, G]."""
        if self.transfer.id_only:
            users_VD, items_GD = self.recommender.collaborative(queries, tables, items_G)
            return users_VD @ items_GD.T
        items_GD = self.recommender.items(features_G, tables, items_G)
        return self.recommender.score(self.recommender.users(queries, tables), items_GD)


class Teacher:
    """The recommender as it is now, whatever becomes of its weights and of the features; it gives constant scores.

    Args:
        recommender: The recommender, in evaluation mode.
        features: Features of all items, float32 [I, d_m] by modality.
        id_only: Score by ID vectors alone.
    """

    @torch.no_grad()
    def __init__(self, recommender: Recommender, features: Features, id_only: bool) -> None:
        # The copy has its own weights, but not its own graphs, which never change and are not part of the state.
        state = {id(value) for value in recommender.state_dict(keep_vars=True).values()}
        shared = {id(buffer): buffer for buffer in recommender.buffers() if id(buffer) not in state}
        self.recommender = copy.deepcopy(recommender, shared).requires_grad_(False)
        self.tables = self.recommender.tables(features)
        self.items_ID = None if id_only else self.recommender.items(features, self.tables)

    @torch.no_grad()
    def __call__(self, queries: Queries, items_G: Tensor) -> Tensor:
        """Score items.

        Args:
            queries: Users, [V].
            items_G: Item indices, int64 [G].

        Returns:
            float32 [V, G].
        """
        if self.items_ID is None:
            users_VD, items_GD = self.recommender.collaborative(queries, self.tables, items_G)
            return users_VD @ items_GD.T
        return self.recommender.score(self.recommender.users(queries, self.tables), self.items_ID[items_G])


def _first_copies(items_G: Tensor) -> Tensor:
    """Whether each item stands here for the first time, bool [G]."""
    sorted_G, order_G = items_G.sort(stable=True)
    first_G = torch.ones_like(sorted_G, dtype=torch.bool)
    first_G[1:] = sorted_G[1:] != sorted_G[:-1]
    return torch.empty_like(first_G).scatter(0, order_G, first_G)


def _with_live_rows(table_ID: Tensor, items_G: Tensor, rows_GD: Tensor, counted_G: Tensor) -> Tensor:
    """A copy of the table with the batch's rows in place of the stored ones; an item's gradient goes to its first copy."""
    return table_ID.index_fill(0, items_G, 0).index_add(0, items_G, rows_GD * counted_G[:, None])
