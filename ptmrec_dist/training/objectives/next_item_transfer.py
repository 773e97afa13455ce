"""Stage 2 of sequence recommenders: L = L_next + kt_weight * L_KT, PTMRec (section 2.4) on top of sequences.

PTMRec's users are rows of a table. Here a user is a state h after items of a history, and so a row of L_KT is a position r:

    q_r = softmax over the step's items of h^T_r . e^T_i,   p_r,m = softmax of h_r . v_m,i,
    L_KT = mean over r of sum over modalities m of KL(q_r || p_r,m)

e^T and h^T are those of a teacher, which does not change: a recommender by IDs of another run, or this one as it was. v_m,i are
the vectors that features of one modality, which the encoder gives now, have alone; h_r is the state of the recommender in
training, or h^T_r, so that L_KT moves items alone. Other items that the user took are left out, as in the in-batch loss;
the target is not, and each item counts once.

Legend: G distinct items of the step, I items, V users of this rank, L items that are read, R positions of this rank with a
target, B some of them, D width of what is scored, S width of the teacher's states.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.recommenders.blocks import in_blocks
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.objectives.live_sequence import LiveInputs, LiveNextItem
from ptmrec_dist.training.objectives.losses import knowledge_transfer
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch


class NextItemTeacher:
    """A sequence recommender as it is now, whatever becomes of its weights and of features.

    Args:
        recommender: The recommender.
        features: Features of all items, float32 [I, d_m] by modality; empty if it reads none.
    """

    @torch.no_grad()
    def __init__(self, recommender: SequenceRecommender, features: Features) -> None:
        self.recommender = copy.deepcopy(recommender).eval().requires_grad_(False)
        self.vectors_ID = self.recommender.item_vectors(features)

    @torch.no_grad()
    def states(self, batch: SequenceBatch) -> Tensor:
        """Compute the states at the positions of a step.

        Args:
            batch: This rank's users.

        Returns:
            [R, S].
        """
        read_VLD = F.embedding(batch.items[batch.inputs], self.vectors_ID)
        return F.embedding(batch.rows, self.recommender.states(read_VLD, batch.mask).flatten(0, 1))

    @torch.no_grad()
    def scores(self, states_BS: Tensor, items_G: Tensor) -> Tensor:
        """Score items.

        Args:
            states_BS: What `states` returned for some positions.
            items_G: Item indices, int64 [G].

        Returns:
            [B, G].
        """
        return self.recommender.score(states_BS, self.recommender.candidates(self.vectors_ID[items_G]))


class NextItemTransfer(LiveNextItem):
    """Encoder and sequence recommender, trained together with a teacher.

    Args:
        inputs: What is trained, and on what; the recommender has `modal_vectors`.
        seed: Seed of dropout.
        teacher: The teacher.
        weight: Weight of L_KT.
        temperature: Divides the scores of both distributions.
        teachers_states: Features are scored with the teacher's states; by default with the recommender's own.
    """

    def __init__(
        self,
        inputs: LiveInputs,
        seed: int,
        *,
        teacher: NextItemTeacher,
        weight: float,
        temperature: float,
        teachers_states: bool,
    ) -> None:
        super().__init__(inputs, NextItemConfig(), seed)
        self.teacher, self.teachers_states = teacher, teachers_states
        self.weight, self.temperature = weight, temperature

    def views_of(self, features: Features, items: Tensor) -> dict[str, Tensor]:
        """Add the vectors of each modality alone."""
        return super().views_of(features, items) | self.recommender.modal_vectors(features)

    def other_terms(
        self, batch: SequenceBatch, views: Mapping[str, Tensor], states_VLD: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Compute the terms of the recommender itself, and `kt`."""
        terms = super().other_terms(batch, views, states_VLD, step)
        if not self.weight:
            return terms
        counted_VG, taught_RS = ~batch.hidden(), self.teacher.states(batch)
        states_RD = taught_RS if self.teachers_states else F.embedding(batch.rows, states_VLD.flatten(0, 1))

        def divergences(states_BD: Tensor, taught_BS: Tensor, users_B: Tensor, targets_B: Tensor) -> Tensor:
            counted_BG = counted_VG[users_B].scatter(1, targets_B[:, None], True)
            teacher_BG = self.teacher.scores(taught_BS, batch.items)
            students = [self.recommender.score(states_BD, views[name]) for name in self.recommender.modalities]
            each = [knowledge_transfer(student, teacher_BG, counted_BG, self.temperature) for student in students]
            return torch.stack(each).sum(dim=0)

        users_R = batch.rows // batch.inputs.shape[1]
        columns = len(batch.items) * len(self.recommender.modalities)
        losses_R = in_blocks(divergences, columns, states_RD, taught_RS, users_R, batch.targets)
        return terms | {"kt": self.weight * losses_R.sum() * batch.weight}
