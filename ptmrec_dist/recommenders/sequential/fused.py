"""Sequence recommenders over fused images and texts: what the losses other than that of the next item need of them.

Shape suffixes: K classes of noise, D width.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.recommenders.sequential.content import ContentRecommender
from ptmrec_dist.recommenders.sequential.fusion import MergeAttention


class FusedRecommender(ContentRecommender):
    """A recommender that makes an item's vector of its image and its text, and also has a vector of each alone.

    `training/objectives/pretraining.py` trains it by further losses, which its hyper-parameters choose.
    """

    reads_tokens: ClassVar[bool] = True
    config: PMMRecConfig
    """Hyper-parameters, with those of the losses."""
    fusion: MergeAttention
    """Makes vectors of tokens."""
    fuses_tokens: bool
    """Whether it is built for an encoder's tokens, and not for its features."""

    @abstractmethod
    def classify_noise(self, states: Tensor) -> Tensor:
        """Compute the outputs of the classifier of noise (PMMRec, arXiv 2312.09602, eq. 10).

        Args:
            states: States of noised histories, [*, D].

        Returns:
            Unchanged, shuffled, replaced: [*, K], without a ReLU.
        """
