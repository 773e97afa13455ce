"""An encoder whose tokens a recommender fuses, for all that takes the encoder's features otherwise.

Shape suffixes: B items, D width.
"""

from torch import Tensor, nn

from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import EncodesItems
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.sequential.fused import FusedRecommender
from ptmrec_dist.recommenders.sequential.fusion import MergeAttention


class FusedEncoder(nn.Module):
    """Images and texts in, vectors of each modality and of both out.

    Args:
        encoder: The encoder, running the towers of all modalities that are fused.
        fusion: The fusion, which belongs to a recommender.
    """

    def __init__(self, encoder: Encoder, fusion: MergeAttention) -> None:
        super().__init__()
        self.encoder, self.fusion = encoder, fusion

    @property
    def widths(self) -> dict[str, int]:
        """Width of each kind of vectors."""
        return self.fusion.widths

    def encode(self, images: Tensor | None, texts: Tensor | None, *, items: Tensor | None = None) -> dict[str, Tensor]:
        """Encode a batch of items.

        Args:
            images: uint8 [B, 3, H, W]; not needed without the image tower.
            texts: Token ids int64 [B, N]; not needed without the text tower.
            items: Item indices, int64 [B]; as for `Encoder.encode`.

        Returns:
            What the fusion returns, float32 [B, D] each.
        """
        fused: dict[str, Tensor] = self.fusion(self.encoder.encode(images, texts, items=items, tokens=True))
        return fused


def encoder_of(recommender: Recommender | None, encoder: Encoder) -> EncodesItems:
    """Return what gives the features that a recommender reads where its encoder is at hand.

    Args:
        recommender: The recommender.
        encoder: The encoder.

    Returns:
        The encoder itself, or joined with the recommender's fusion.
    """
    if isinstance(recommender, FusedRecommender) and recommender.fuses_tokens:
        return FusedEncoder(encoder, recommender.fusion)
    return encoder
