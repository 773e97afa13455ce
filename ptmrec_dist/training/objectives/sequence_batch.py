"""A step of training on sequences: those of this rank, and the items that their positions are compared with.

Legend: G distinct items of the step, V sequences of this rank, L items that are read, R positions of this rank with a target, N
own items of the sequences' users.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptmrec_dist.data.stream import ItemBatch, moved


class SequenceBatch(NamedTuple):
    """A step: sequences of this rank, and the items that their positions are compared with."""

    users: Tensor
    """User of each sequence, int64 [V]."""
    inputs: Tensor
    """Items that are read, as columns among the distinct ones, int64 [V, L]; any where there is padding."""
    mask: Tensor
    """Whether there is an item, bool [V, L]; padding is on the left."""
    rows: Tensor
    """Positions with a target among all V * L, ascending, int64 [R]."""
    targets: Tensor
    """Column of the item after each of them, int64 [R]."""
    items: Tensor
    """Distinct items of the step's sequences, ascending, int64 [G]."""
    counts: Tensor
    """How often the sequences have each, int64 [G]."""
    taken: Tensor
    """Row among the sequences and column of each training item of their users that is among the distinct ones, int64 [2, N]."""
    weight: float
    """Ranks divided by the positions of all ranks: the weight of each of this rank's positions in its mean."""

    num_sequences: int
    """Sequences of the global batch."""
    content: ItemBatch | None = None
    """What the encoder reads of the items that this rank encodes; None where features are frozen."""

    def hidden(self) -> Tensor:
        """Find the items that are no negatives, because the user interacted with them in training.

        Returns:
            bool [V, G].
        """
        hidden_VG = torch.zeros(len(self.users), len(self.items), dtype=torch.bool, device=self.items.device)
        return hidden_VG.index_put_(tuple(self.taken), hidden_VG.new_ones(()))

    def to(self, device: torch.device) -> "SequenceBatch":
        """Move everything to a device.

        Args:
            device: Target device.

        Returns:
            The moved batch.
        """
        fields = self._asdict().items()
        tensors: dict[str, Any] = {name: moved(value, device) for name, value in fields if isinstance(value, Tensor)}
        content = None if self.content is None else self.content.to(device)
        return self._replace(**tensors, content=content)


def encoded_by(items_G: Tensor, rank: int, size: int) -> Tensor:
    """Choose the items that one of the ranks encodes for all.

    Args:
        items_G: Distinct items of the step, int64 [G].
        rank: The rank.
        size: Number of ranks.

    Returns:
        Every `size`-th of them, [G // size] or one more.
    """
    return items_G[rank::size]
