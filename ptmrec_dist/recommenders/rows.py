"""Rows of tables: looked up several lists at once, subtracted, or read of a batch alone.

Shape suffixes: B batch rows, C chosen rows, G items of a batch, N rows of a table, I items, D width, d_m width of a
modality's features.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Mapping[str, Tensor]
"""Modality name (`image`, `text`) to its table, float32 [I, d_m], row = item index."""


class BatchRows:
    """The rows of a feature table that a batch reads, indexed like the table, which is not needed.

    Args:
        items_G: Items of the batch, int64 [G]; items may repeat.
        counted_G: Whether each row may be looked up, bool [G]; of an item's rows, the first counted one is used.
        rows_GD: Their features, float32 [G, d_m].
    """

    def __init__(self, items_G: Tensor, counted_G: Tensor, rows_GD: Tensor) -> None:
        self.rows_GD = rows_GD
        # Of an item's rows, the counted ones come first.
        self._keys_G, self._order_G = (2 * items_G + ~counted_G).sort(stable=True)

    def positions(self, items: Tensor) -> Tensor:
        """Find the rows of items, without device synchronisation.

        Args:
            items: Item indices, int64, any shape.

        Returns:
            Row of each in `rows_GD`, the same shape; G, an invalid index, for an item that is not in the batch.
        """
        found = torch.searchsorted(self._keys_G, 2 * items).clamp(max=len(self._keys_G) - 1)
        return self._order_G[found].where(self._keys_G[found] // 2 == items, len(self._keys_G))

    def __getitem__(self, items: Tensor) -> Tensor:
        """Look up items.

        Args:
            items: Items of the batch, int64 [*].

        Returns:
            float32 [*, d_m].

        Raises:
            IndexError: An item is not in the batch.
        """
        return self.rows_GD[self.positions(items)]


FeatureRows = Mapping[str, Tensor | BatchRows]
"""Modality name to an object that `[items]` indexes, giving float32 [*, d_m]: its table, or the rows of a batch's items."""


def look_up(table_ND: Tensor, *rows_B: Tensor) -> tuple[Tensor, ...]:
    """Look up several lists of rows at once, so that the table gets one gradient instead of one per list.

    Args:
        table_ND: Any float32 table [N, D].
        *rows_B: Rows, int64 [B] each.

    Returns:
        float32 [B, D] for each list.
    """
    return F.embedding(torch.stack(rows_B), table_ND).unbind()


def rows_of(table_ND: Tensor, chosen: Tensor | None) -> Tensor:
    """Look up chosen rows, or the whole table without copying it.

    Args:
        table_ND: Any table [N, D].
        chosen: Rows, int64 [C]; None for all.

    Returns:
        [C, D].
    """
    return table_ND if chosen is None else F.embedding(chosen, table_ND)


def row_gaps(table_ID: Tensor | BatchRows, positives_B: Tensor, negatives_B: Tensor) -> Tensor:
    """Subtract rows of a wide table without materialising either of them.

    Args:
        table_ID: float32 [I, D], or the rows of a batch.
        positives_B: Rows to subtract from, int64 [B].
        negatives_B: Rows to subtract, int64 [B].

    Returns:
        Differences, float32 [B, D].
    """
    pairs_B2 = torch.stack([positives_B, negatives_B], dim=1)
    if isinstance(table_ID, BatchRows):
        pairs_B2, table_ID = table_ID.positions(pairs_B2), table_ID.rows_GD
    signs_B2 = torch.linspace(1, -1, 2, device=table_ID.device).expand(len(positives_B), 2)
    return F.embedding_bag(pairs_B2, table_ID, mode="sum", per_sample_weights=signs_B2)
