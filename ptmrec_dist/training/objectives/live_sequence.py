"""Training of an encoder with a sequence recommender: each distinct item of a step is encoded once, on one rank.

Legend: B items that a rank encodes, I items, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.objectives.sequence import NextItem
from ptmrec_dist.training.objectives.sequence_batch import SequenceBatch
from ptmrec_dist.training.objectives.tuned import TrainsEncoder


@dataclass(frozen=True)
class LiveInputs:
    """What is trained, and on what, all of it on the rank's device."""

    encoder: Encoder | None
    """The encoder, with what is tuned inside it; None keeps all features frozen."""
    recommender: SequenceRecommender
    """The recommender."""
    features: Features
    """Stored features, float32 [I, D] by modality."""
    has: Mapping[str, Tensor]
    """Modality to which items have it, bool [I]."""
    sequences: TrainingSequences
    """Users and their sequences."""
    world: World
    """This rank and its peers."""


class LiveNextItem(TrainsEncoder, NextItem):
    """Encoder and sequence recommender, trained together.

    Args:
        inputs: What is trained, and on what.
        config: Settings of the loss, which compares the items of a step.
        seed: Seed of dropout and noise.
    """

    def __init__(self, inputs: LiveInputs, config: NextItemConfig, seed: int) -> None:
        NextItem.__init__(
            self, inputs.recommender, inputs.features, False, inputs.world, inputs.sequences, config, seed
        )
        self.encoder = inputs.encoder
        self.has = {modality: has_I for modality, has_I in inputs.has.items() if not has_I.all()}

    def own_features(self, batch: SequenceBatch, items: Tensor) -> dict[str, Tensor]:
        """Compute the features by the encoder; the stored ones stand for those of items that could not be read."""
        if batch.content is None:
            return super().own_features(batch, items)
        rows = self.encoded(batch.content)
        if len(batch.content.items) < len(items):
            read = torch.searchsorted(items, batch.content.items)
            rows = {name: table[items].index_copy(0, read, rows[name]) for name, table in self.features.items()}
        return rows
