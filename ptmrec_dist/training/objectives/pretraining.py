"""The losses of PMMRec other than that of the next item (arXiv 2312.09602, eq. 6 to 12), as its hyper-parameters choose them.

Legend: G distinct items of the step, V users of this rank, U users of the step, L items that are read, R positions of this rank
with a target, D width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.distributed import World, gather_rows
from ptmrec_dist.recommenders.sequences import ITEMS
from ptmrec_dist.recommenders.sequential.fused import FusedRecommender
from ptmrec_dist.training.objectives.contrast import contrast
from ptmrec_dist.training.objectives.noised_items import detection_loss, noised
from ptmrec_dist.training.objectives.robust import pooled, robust_contrast
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch


class Pretraining:
    """Contrast of images and texts, noised item detection, and contrast of noised histories.

    Args:
        recommender: The recommender, whose hyper-parameters choose.
        world: This rank and its peers.
        seed: Seed of the noise.
    """

    def __init__(self, recommender: FusedRecommender, world: World, seed: int) -> None:
        self.recommender, self.config = recommender, recommender.config
        self.world, self.seed = world, seed

    def __call__(
        self,
        batch: SequenceBatch,
        views: Mapping[str, Tensor],
        states_VLD: Tensor,
        log_counts_G: Tensor,
        step: int,
    ) -> dict[str, Tensor]:
        """Compute this rank's contributions to the mean losses over all ranks.

        Collective: every rank must call this.

        Args:
            batch: This rank's users.
            views: What the recommender's `views` returned for the step's items, [G, D] each.
            states_VLD: States after the items that are read, [V, L, D].
            log_counts_G: Logarithm of how often each item counts as a negative, [G].
            step: Number of the step; with the seed it decides the noise.

        Returns:
            Those of `contrast`, `nid` and `rcl` that are in use: scalars whose mean over the ranks is the global mean.
        """
        hidden_VG = batch.hidden()
        terms = {}
        if self.config.contrast != "none" and len(self.recommender.modalities) > 1:
            terms["contrast"] = self._contrast(batch, views, hidden_VG, log_counts_G)
        if self.config.noises:
            terms |= self._denoising(batch, views[ITEMS], states_VLD, hidden_VG, step)
        return terms

    def _contrast(
        self, batch: SequenceBatch, views: Mapping[str, Tensor], hidden_VG: Tensor, log_counts_G: Tensor
    ) -> Tensor:
        text_GD, image_GD = views["text"], views["image"]
        kind = self.config.contrast
        assert kind != "none"
        hidden_RG = hidden_VG[batch.rows // batch.inputs.shape[1]]
        losses_R = contrast(
            text_GD,
            image_GD,
            batch.inputs.flatten()[batch.rows],
            batch.targets,
            log_counts_G.to(text_GD).expand(len(hidden_RG), -1).masked_fill(hidden_RG, -torch.inf),
            kind,
            self.config.nicl_denominator == "complete",
            self.config.temperature,
        )
        return losses_R.sum() * batch.weight

    def _denoising(
        self, batch: SequenceBatch, items_GD: Tensor, states_VLD: Tensor, hidden_VG: Tensor, step: int
    ) -> dict[str, Tensor]:
        config, salt = self.config, self.seed * 1_000_003 + step
        noise = noised(batch.inputs, batch.mask, batch.users, hidden_VG, config.shuffled, config.replaced, salt)
        noised_VLD = self.recommender.states(F.embedding(noise.inputs, items_GD), batch.mask)
        terms = {}
        if config.nid != "none":
            outputs_RK = self.recommender.classify_noise(F.embedding(batch.rows, noised_VLD.flatten(0, 1)))
            losses_R = detection_loss(outputs_RK, noise.labels.flatten()[batch.rows], config.nid == "relu")
            # An item that is read has a target: there are as many of these as of those.
            terms["nid"] = losses_R.sum() * batch.weight
        if config.rcl != "none":
            clean_VD, distorted_VD = pooled(states_VLD, batch.mask), pooled(noised_VLD, batch.mask)
            terms["rcl"] = config.rcl_weight * self._robust(batch, clean_VD, distorted_VD)
        return terms

    def _robust(self, batch: SequenceBatch, clean_VD: Tensor, noised_VD: Tensor) -> Tensor:
        """Users of all ranks are compared; the one that a rank without users makes up counts nowhere."""
        size = -(-batch.num_sequences // self.world.size)
        counts_V = clean_VD.new_full((len(batch.users),), float(batch.weight > 0))
        counted_U = gather_rows(counts_V, size) > 0
        own_V = self.world.rank * size + torch.arange(len(batch.users), device=clean_VD.device)
        temperature = self.config.rcl_temperature if self.config.rcl == "cosine" else None
        losses_V = robust_contrast(clean_VD, gather_rows(noised_VD, size), own_V, counted_U, temperature)
        return (losses_V * counts_V).sum() * (self.world.size / batch.num_sequences)
