"""Stage 1 of sequence recommenders: every item of a sequence is predicted from those before it.

Each distinct item of a step is encoded once, and weighs as often as the step's sequences have it: equal in value and
gradient to encoding it wherever it stands. Positions of this rank's users are compared with the items of all ranks.

Legend: G distinct items of the step, I items, V users of this rank, L items that are read, R positions of this rank with
a target, K negatives, N own items of the users, D width of the vectors that are read, X of those that are scored.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World, gather_rows
from ptmrec_dist.recommenders.blocks import in_blocks
from ptmrec_dist.recommenders.rows import Features, rows_of
from ptmrec_dist.recommenders.sequences import ITEMS, SequenceRecommender
from ptmrec_dist.recommenders.sequential.fused import FusedRecommender
from ptmrec_dist.training.negatives import NegativeSampler
from ptmrec_dist.training.objectives.losses import hashed_choice
from ptmrec_dist.training.objectives.pretraining import Pretraining
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch, encoded_by


class NextItem(RecommenderObjective):
    """A sequence recommender, as a function from sequences to the mean loss over all positions of all ranks.

    Args:
        recommender: The recommender.
        features: Modality to table, float32 [I, d_m].
        train_features: Train the tables, too.
        world: This rank and its peers.
        sequences: What is trained on.
        config: Settings of the loss.
        seed: Seed of dropout and of sampled negatives.
    """

    recommender: SequenceRecommender

    def __init__(
        self,
        recommender: SequenceRecommender,
        features: Features,
        train_features: bool,
        world: World,
        sequences: TrainingSequences,
        config: NextItemConfig,
        seed: int,
    ) -> None:
        super().__init__(recommender, features, train_features, world)
        self.sequences, self.config, self.seed = sequences, config, seed
        occurrences_I = torch.from_numpy(sequences.occurrences).to(world.device, torch.float64)
        self.log_frequency_I = (occurrences_I / occurrences_I.sum()).log()
        self.pretraining = Pretraining(recommender, world, seed) if isinstance(recommender, FusedRecommender) else None
        self.sampler = None
        if config.negatives_per_position:
            train = sequences.histories.pairs
            self.sampler = NegativeSampler(train, sequences.histories.num_users, world.device)

    def forward(self, batch: SequenceBatch, step: int) -> dict[str, Tensor]:
        """Compute this rank's contribution to the mean loss over the positions of all ranks.

        Collective: every rank must call this.

        Args:
            batch: This rank's users.
            step: Number of the step; with the seed it decides dropout and sampled negatives.

        Returns:
            `next_item`, and the other terms of PMMRec: scalars whose mean over the ranks is the global mean.
        """
        if self.training:  # dropout depends on nothing else, so that an interrupted run repeats it
            torch.manual_seed((self.seed * 1_000_003 + step) * self.world.size + self.world.rank)
        all_views = self.recommender.views(self.features) if self.config.loss == "full" else None
        views = self._views(batch) if all_views is None else _rows_of_all(all_views, batch.items)
        states_VLD = self.recommender.states(F.embedding(batch.inputs, views[ITEMS]), batch.mask)
        states_RD = F.embedding(batch.rows, states_VLD.flatten(0, 1))
        if all_views is not None:
            candidates_IX = self.recommender.candidates(all_views[ITEMS])
            losses_R = self._full(states_RD, candidates_IX, batch.items[batch.targets])
        elif self.config.loss == "inbatch":
            losses_R = self._in_batch(batch, states_RD, self.recommender.candidates(views[ITEMS]))
        else:
            losses_R = self._sampled(batch, states_RD, self.recommender.candidates(views[ITEMS]), step)
        return {"next_item": losses_R.sum() * batch.weight} | self.other_terms(batch, views, states_VLD, step)

    def _views(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Vectors of the step's items. Those that features give are computed once over all ranks, a part on each."""
        if not self.recommender.multimodal or self.config.negatives == "rank":
            return self._own_views(batch, batch.items)
        ranks, number = self.world.size, torch.arange(len(batch.items), device=batch.items.device)
        size = -(-len(batch.items) // ranks)
        own = self._own_views(batch, encoded_by(batch.items, self.world.rank, ranks))
        joined = gather_rows(torch.cat(list(own.values()), dim=1), size)
        ordered = F.embedding(number % ranks * size + number // ranks, joined)
        return dict(zip(own, ordered.split([view.shape[1] for view in own.values()], dim=1), strict=True))

    def _own_views(self, batch: SequenceBatch, items: Tensor) -> dict[str, Tensor]:
        return self.views_of(self.own_features(batch, items), items)

    def own_features(self, batch: SequenceBatch, items: Tensor) -> dict[str, Tensor]:
        """Look up the features of the items that this rank encodes; a subclass may compute them.

        Args:
            batch: This rank's users.
            items: The items, int64 [C].

        Returns:
            Modality to features, float32 [C, d_m].
        """
        return self._features_of(items)

    def views_of(self, features: Features, items: Tensor) -> dict[str, Tensor]:
        """Compute vectors of items from their features; a subclass may add views.

        Args:
            features: Features of these items, float32 [C, d_m] by modality.
            items: The items, int64 [C].

        Returns:
            View to vectors, [C, D].
        """
        return self.recommender.views(features, items)

    def other_terms(
        self, batch: SequenceBatch, views: Mapping[str, Tensor], states_VLD: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Compute the terms other than that of the next item: those of PMMRec; a subclass may add others.

        Collective: every rank must call this.

        Args:
            batch: This rank's users.
            views: View to vectors of the step's items, [G, D].
            states_VLD: States of the users' positions, [V, L, D].
            step: Number of the step.

        Returns:
            Named terms, weights included: scalars whose mean over the ranks is the global mean.
        """
        if self.pretraining is None:
            return {}
        return self.pretraining(batch, views, states_VLD, self._log_counts(batch), step)

    def _encode(self, items: Tensor) -> Tensor:
        return self.recommender.item_vectors(self._features_of(items), items)

    def _features_of(self, items: Tensor) -> dict[str, Tensor]:
        return {name: table[items] for name, table in self.features.items()}

    def _full(self, states_RD: Tensor, items_IX: Tensor, targets_R: Tensor) -> Tensor:
        def losses(states_BD: Tensor, targets_B: Tensor) -> Tensor:
            return F.cross_entropy(self.recommender.score(states_BD, items_IX), targets_B, reduction="none")

        return in_blocks(losses, len(items_IX), states_RD, targets_R)

    def _in_batch(self, batch: SequenceBatch, states_RD: Tensor, items_GX: Tensor) -> Tensor:
        log_frequency_G = self.log_frequency_I[batch.items].to(items_GX)
        # The probability to be in the step: p for each of its n slots, or 1 - (1 - p)^n for being there at all.
        once = self.config.duplicates == "once"
        log_q_G = log_inclusion(log_frequency_G, batch.counts.sum()) if once else log_frequency_G
        log_q_G = log_q_G if self.config.logq else torch.zeros_like(log_q_G)
        hidden_VG, log_counts_G = batch.hidden(), self._log_counts(batch).to(items_GX)

        def losses(states_BD: Tensor, targets_B: Tensor, users_B: Tensor) -> Tensor:
            scores_BG = self.recommender.score(states_BD, items_GX)
            return in_batch_cross_entropy(scores_BG, targets_B, hidden_VG[users_B], log_counts_G, log_q_G)

        return in_blocks(losses, len(items_GX), states_RD, batch.targets, batch.rows // batch.inputs.shape[1])

    def _log_counts(self, batch: SequenceBatch) -> Tensor:
        """Logarithm of how often each item counts as a negative, [G]."""
        counts_G = torch.ones_like(batch.counts) if self.config.duplicates == "once" else batch.counts
        return counts_G.to(self.log_frequency_I).log()

    def _sampled(self, batch: SequenceBatch, states_RD: Tensor, items_GX: Tensor, step: int) -> Tensor:
        assert self.sampler is not None
        users_R, number = batch.users[batch.rows // batch.inputs.shape[1]], self.config.negatives_per_position
        # A function of the user and the position alone: the same on any number of ranks.
        random_RK = hashed_choice(
            users_R,
            batch.rows % batch.inputs.shape[1],
            torch.full((), 2**62, device=users_R.device),
            self.seed * 1_000_003 + step,
            number,
        )
        negatives_RK = self.sampler.choose(users_R[:, None].expand_as(random_RK), random_RK)
        vectors_RKX = self._sampled_items(negatives_RK)
        own_R1X = F.embedding(batch.targets, items_GX)[:, None]
        scores_RK = self.recommender.score_own(states_RD, torch.cat([own_R1X, vectors_RKX], dim=1))
        if self.config.loss == "sampled":
            return -F.log_softmax(scores_RK, dim=1)[:, 0]
        calibration = self.config.calibration if self.config.loss == "gbce" else 0.0
        return binary_cross_entropy(scores_RK, calibration, number / max(self.sampler.num_items - 1, 1))

    def _sampled_items(self, items_RK: Tensor) -> Tensor:
        """What is scored of sampled items, [R, K, X]. Those that features give are encoded once each."""
        if not self.recommender.multimodal:
            vectors_NX = self.recommender.candidates(self._encode(items_RK.flatten()))
            return vectors_NX.view(*items_RK.shape, -1)
        distinct_N, rows_RK = items_RK.unique(return_inverse=True)
        return F.embedding(rows_RK, self.recommender.candidates(self._encode(distinct_N)))


def _rows_of_all(views: dict[str, Tensor], items_G: Tensor) -> dict[str, Tensor]:
    return {name: rows_of(view, items_G) for name, view in views.items()}


def in_batch_cross_entropy(
    scores_RG: Tensor, targets_R: Tensor, hidden_RG: Tensor, log_counts_G: Tensor, log_q_G: Tensor
) -> Tensor:
    """Compute the cross-entropy of the target against the other items of the step.

    -log exp(s_t - log q_t) / (exp(s_t - log q_t) + sum over the items i that the user did not take of c_i exp(s_i - log q_i))

    Args:
        scores_RG: Score of each position and item, [R, G].
        targets_R: Column of each target, int64 [R].
        hidden_RG: Items that the user took, the target among them, bool [R, G].
        log_counts_G: Logarithm of how often an item counts c, [G].
        log_q_G: Logarithm of the probability q with which an item is in the step, 0 for no correction, [G].

    Returns:
        [R].

    Source: PMMRec eq. 5; the correction is that of Yi et al., RecSys 2019.
    """
    own_R1 = scores_RG.gather(1, targets_R[:, None]) - log_q_G[targets_R][:, None]
    others_RG = (scores_RG + (log_counts_G - log_q_G)).masked_fill(hidden_RG, -torch.inf)
    return torch.cat([own_R1, others_RG], dim=1).logsumexp(dim=1) - own_R1[:, 0]


def log_inclusion(log_frequency_G: Tensor, slots: Tensor) -> Tensor:
    """Compute the logarithm of the probability that an item is among independent ones at all, log(1 - (1 - p)^n).

    Args:
        log_frequency_G: Logarithm of the probability p of one slot, [G].
        slots: Number of slots n, scalar.

    Returns:
        [G].
    """
    return torch.log(-torch.expm1(slots * torch.log1p(-log_frequency_G.exp())))


def binary_cross_entropy(scores_RK: Tensor, calibration: float, rate: float) -> Tensor:
    """Compute the binary cross-entropy of targets against sampled negatives, the target's probability to the power of beta.

    -(beta log sigmoid(s_t) + sum over the negatives of log(1 - sigmoid(s_i))) / K,  beta = 1 - t (1 - rate)

    Args:
        scores_RK: Scores of the target, which is the first, and of its negatives, [R, K].
        calibration: t; 0 for the plain cross-entropy.
        rate: Fraction of the possible negatives that are sampled, alpha.

    Returns:
        [R].

    Source: gSASRec, arXiv 2308.07192, eq. 8 and 12; SASRec eq. 7 has t = 0 and one negative.
    """
    beta = 1 - calibration * (1 - rate)
    return -(beta * F.logsigmoid(scores_RK[:, 0]) + F.logsigmoid(-scores_RK[:, 1:]).sum(dim=1)) / scores_RK.shape[1]
