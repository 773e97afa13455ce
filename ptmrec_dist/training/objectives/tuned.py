"""What the objectives have in common that train a recommender and its encoder together: features that change.

Legend: B items, I items, D width.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.files import link_or_copy
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.fused_encoder import encoder_of
from ptmrec_dist.training.objectives.base import TrainsRecommender

FEATURES_FILE = "features.safetensors"


class TrainsEncoder(TrainsRecommender):
    """A recommender, its encoder, and the features of all items as they were when they were last refreshed."""

    encoder: Encoder | None
    """The encoder, with what is tuned inside it, running the towers whose features change; None keeps all features frozen."""
    features: dict[str, Tensor]
    """Stored features, float32 [I, D] by modality."""
    has: Mapping[str, Tensor]
    """Modality to which items have it, bool [I]; a modality that all have is left out."""
    _features_written = False

    def encoded(self, content: ItemBatch) -> dict[str, Tensor]:
        """Compute the features of a step's items on this rank.

        Args:
            content: The items.

        Returns:
            Those that the encoder gives, with gradient, and the stored ones of frozen towers and of what an item lacks: [B, D].
        """
        items_B = content.items
        self.encoded_items += len(items_B)
        rows = {modality: table[items_B] for modality, table in self.features.items()}
        if self.encoder is not None:
            encoder = encoder_of(self.recommender, self.encoder)
            for modality, rows_BD in encoder.encode(content.images, content.texts, items=items_B).items():
                has_I = self.has.get(modality)
                rows[modality] = rows_BD if has_I is None else rows_BD.where(has_I[items_B][:, None], rows[modality])
        return rows

    def replace_features(self, tables: Features) -> None:
        """Replace the stored features by those of the encoder as it is now.

        Args:
            tables: float32 [I, D] by modality.
        """
        self.features, self._features_written = dict(tables), False

    def write(self, folder: Path) -> None:
        """Write the stored features, unless the encoder is frozen: they are those that training started from.

        They are written once per refresh, beside the checkpoints, which hold hard links to them: they are gone from the disk
        with the last checkpoint that has them.
        """
        if self.encoder is None:
            return
        written = folder.parent / FEATURES_FILE
        if not self._features_written:
            save_tensors(written, self.features)
            self._features_written = True
        link_or_copy(written, folder / FEATURES_FILE)

    def read(self, folder: Path) -> None:
        """Read the stored features of the last refresh, which the interrupted run had in memory."""
        if self.encoder is not None:
            device = next(self.recommender.parameters()).device
            tables = load_file(folder / FEATURES_FILE, str(device))
            self.replace_features(tables)
