"""Image-text contrastive learning (PTMRec eq. 2): the objective over the pairs of all ranks.

Legend: B local pairs, G pairs of all ranks, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed import World, gather_rows, mean_over_ranks
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.training.objectives.base import Objective


def contrastive_loss(
    images_BD: Tensor, texts_BD: Tensor, images_GD: Tensor, texts_GD: Tensor, own_B: Tensor, scale: Tensor | float
) -> Tensor:
    """Compute InfoNCE of this rank's pairs against the pairs of all ranks.

    Eq. 2 asks for the right text of an image. CLIP also asks for the right image of a text and averages the two, and so
    does this. On one process the gathered features are the local ones.

    Args:
        images_BD: Image features of length 1, float32 [B, D].
        texts_BD: Text features of length 1, float32 [B, D].
        images_GD: Those of all ranks, gathered with gradient, float32 [G, D].
        texts_GD: Those of all ranks, gathered with gradient, float32 [G, D].
        own_B: Position of each local pair among the gathered ones, int64 [B].
        scale: 1 / temperature.

    Returns:
        Loss of each local pair, float32 [B]; the objective is its mean over the pairs of all ranks.

    Source: PTMRec eq. 2; CLIP, arXiv 2103.00020.
    """
    to_texts_B = F.cross_entropy(scale * images_BD @ texts_GD.T, own_B, reduction="none")
    to_images_B = F.cross_entropy(scale * texts_BD @ images_GD.T, own_B, reduction="none")
    return (to_texts_B + to_images_B) / 2


class ImageTextPairs(Objective):
    """Both towers, as a function from pairs to their loss over all ranks.

    Args:
        encoder: An encoder with both towers; with a common space of images and texts.
        world: This rank and its peers.
    """

    def __init__(self, encoder: Encoder, world: World) -> None:
        super().__init__()
        self.encoder, self.world = encoder, world

    def forward(self, batch: ItemBatch, step: int) -> dict[str, Tensor]:
        """Compute this rank's contribution to the mean loss over the pairs of all ranks.

        Collective: every rank must call this, also one that has no pairs left.

        Args:
            batch: Pairs: images uint8 [B, 3, H, W], texts as token ids int64 [B, N].
            step: Not used.

        Returns:
            `contrast`, a scalar whose mean over the ranks is the loss.
        """
        self.encoded_items += len(batch.items)
        features = self.encoder.encode(batch.images, batch.texts, items=batch.items)
        images_BD, texts_BD, scale = self.encoder.backbone.contrasted(features)
        rank_G = gather_rows(torch.full((len(images_BD),), self.world.rank, device=images_BD.device))
        own_B = (rank_G == self.world.rank).nonzero().squeeze(1)
        gathered = gather_rows(images_BD), gather_rows(texts_BD)
        return {"contrast": mean_over_ranks(contrastive_loss(images_BD, texts_BD, *gathered, own_B, scale))}
