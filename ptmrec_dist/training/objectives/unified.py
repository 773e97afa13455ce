"""Image-text contrast (ITC), matching (ITM) and masked language modelling (MLM) of a VLMo, over the pairs of all ranks.

VLMo, arXiv 2111.02358, section 3.3. ITC compares an image and a text that were encoded alone; ITM and MLM read them together.

Legend: B local pairs, G pairs of all ranks, N text tokens, C context length, D width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed import World, fetch_rows, gather_rows, mean_over_ranks
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.vlmo.model import Vlmo
from ptmrec_dist.encoders.sources.vlmo.source import Unified
from ptmrec_dist.encoders.sources.vlmo.tokens import Tokens
from ptmrec_dist.encoders.sources.vlmo.towers import scaled
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.objectives.base import Objective
from ptmrec_dist.training.objectives.contrastive import contrastive_loss
from ptmrec_dist.training.objectives.masking import IGNORED, Vocabulary, mask_words
from ptmrec_dist.training.objectives.matching import hard_negatives, matching_loss

_MLM_WEIGHT = 0.25  # VLMo's; ITC and ITM have 1


class UnifiedPairs(Objective):
    """All objectives of a VLMo, as a function from pairs to their losses over all ranks.

    Args:
        encoder: An encoder whose backbone is a VLMo, with both towers.
        objectives: Those of `itc`, `itm` and `mlm` that are trained; `itm` samples its negatives by the similarities of ITC.
        mask_rate: Fraction of the words that MLM hides.
        seed: Seed of negatives and hidden words.
        world: This rank and its peers.
    """

    def __init__(
        self, encoder: Encoder, objectives: tuple[str, ...], mask_rate: float, seed: int, world: World
    ) -> None:
        super().__init__()
        self.encoder, self.objectives, self.mask_rate, self.seed, self.world = (
            encoder,
            objectives,
            mask_rate,
            seed,
            world,
        )
        self._backbone = cast(Unified, encoder.backbone)
        self._model = cast(Vlmo, self._backbone.model)
        self._vocabulary = _vocabulary(self._backbone.tokens).to(world.device) if "mlm" in objectives else None

    def forward(self, batch: ItemBatch, step: int) -> dict[str, Tensor]:
        """Compute this rank's contribution to the mean losses over the pairs of all ranks.

        Collective: every rank must call this, also one that has no pairs left.

        Args:
            batch: Pairs: images uint8 [B, 3, H, W], texts as token ids int64 [B, N].
            step: Number of the step since the start; with the seed it decides what is sampled.

        Returns:
            A scalar for each objective, weight included, whose mean over the ranks is the loss.
        """
        images, ids_BN = cast(Tensor, batch.images), cast(Tensor, batch.texts)
        images_BD, texts_BD, scale = self._backbone.contrasted(self.encoder.encode(images, ids_BN, items=batch.items))
        rank_G = gather_rows(torch.full((len(images),), self.world.rank, device=images.device))
        own_B = (rank_G == self.world.rank).nonzero().squeeze(1)
        images_GD, texts_GD = gather_rows(images_BD), gather_rows(texts_BD)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        terms = {}
        if "itc" in self.objectives:
            losses_B = contrastive_loss(images_BD, texts_BD, images_GD, texts_GD, own_B, scale)
            terms["itc"] = mean_over_ranks(losses_B)
        if "itm" in self.objectives:
            # On the CPU and for all ranks, so that neither the device nor the number of ranks changes what is sampled.
            uniform_B2 = torch.rand(len(rank_G), 2, generator=generator).to(images.device)[own_B]
            with torch.no_grad():
                for_texts_BG, for_images_BG = scale * texts_BD @ images_GD.T, scale * images_BD @ texts_GD.T
            terms["itm"] = self._match(images, ids_BN, (for_texts_BG, for_images_BG), own_B, uniform_B2)
        if self._vocabulary is not None:
            uniform_GC3 = torch.rand(len(rank_G), self._backbone.tokens.length, 3, generator=generator)
            uniform_BN3 = uniform_GC3.to(images.device)[own_B, : ids_BN.shape[1]]
            terms["mlm"] = self._predict(images, ids_BN, uniform_BN3, self._vocabulary)
        return terms

    def _match(
        self, images: Tensor, ids_BN: Tensor, similar: tuple[Tensor, Tensor], own_B: Tensor, uniform_B2: Tensor
    ) -> Tensor:
        """ITM of pairs, of texts with sampled images, and of images with sampled texts."""
        for_texts_BG, for_images_BG = similar
        tokens = self._backbone.tokens
        ids_BC = F.pad(ids_BN, (0, tokens.length - ids_BN.shape[1]), value=tokens.pad_id)
        others = 1 if for_texts_BG.shape[1] > 1 else 0  # a last step of one pair has no negatives
        if others:
            other_images = fetch_rows(images, hard_negatives(for_texts_BG, own_B, uniform_B2[:, 0]))
            other_ids_BC = fetch_rows(ids_BC, hard_negatives(for_images_BG, own_B, uniform_B2[:, 1]))
        else:
            other_images, other_ids_BC = images[:0], ids_BC[:0]
        count = len(images) * others
        states = self._together(
            torch.cat([images, other_images, images[:count]]), torch.cat([ids_BC, ids_BC[:count], other_ids_BC])
        )
        logits = self._model.heads.match(states)
        return mean_over_ranks(matching_loss(*logits.split([len(images), count, count])))

    def _predict(self, images: Tensor, ids_BN: Tensor, uniform_BN3: Tensor, vocabulary: Vocabulary) -> Tensor:
        """MLM: the loss of the hidden tokens."""
        masked_BN, labels_BN = mask_words(ids_BN, uniform_BN3, vocabulary, self.mask_rate)
        states = self._together(images, masked_BN)[:, : ids_BN.shape[1]]
        hidden_BN = labels_BN != IGNORED
        scores_RV = self._model.heads.words(states[hidden_BN])
        return _MLM_WEIGHT * mean_over_ranks(F.cross_entropy(scores_RV.float(), labels_BN[hidden_BN], reduction="none"))

    def _together(self, images: Tensor, ids_BN: Tensor) -> Tensor:
        """Final states of pairs, [B, N + M, D]; a rank without pairs still runs the model."""
        count = len(images)
        if not count:
            towers = self.encoder.towers
            images = towers["image"].example.to(images.device)
            ids_BN = towers["text"].example.to(ids_BN.device)[:, : ids_BN.shape[1]]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.encoder.precision == "bf16"):
            states: Tensor = self._model.encode_pair(scaled(images), ids_BN)
        return states.float()[:count]


def _vocabulary(tokens: Tokens) -> Vocabulary:
    if tokens.mask_id is None:
        raise UserError("objectives: got mlm, but the encoder's tokenizer has no [MASK]; leave mlm out")
    return Vocabulary(tokens.mask_id, tokens.special(), tokens.continues())
