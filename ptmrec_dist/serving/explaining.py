"""Why an item is recommended: the items of the history that are most like it, and what its content alone predicts.

Legend: B rows of a request, N recommendations, I items, D width of the scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.histories import Histories
from ptmrec_dist.evaluation.scoring import Score
from ptmrec_dist.serving.users import Requesters

REASONS = 3
"""Most items of a history that are named."""


@dataclass(frozen=True)
class Reasons:
    """Reasons for recommendations, one by one."""

    because: list[list[int]]
    """The items of the history with the largest cosine to the item, the most similar first."""
    content_scores: list[float | None]
    """The cold score, which content alone gives; None for a recommender that reads no features."""


def reasons_for(
    requesters: Requesters,
    rows_N: np.ndarray,
    items_N: np.ndarray,
    vectors_ID: Tensor,
    modal_items_ID: Tensor | None,
    score: Score,
) -> Reasons:
    """Find the reasons for recommendations.

    Args:
        requesters: Users and visitors of the request, [B].
        rows_N: Row of each recommendation, ascending, int64.
        items_N: Its item, int64.
        vectors_ID: Vectors that items are compared by, float32; zero where an item has none.
        modal_items_ID: Vectors of the cold score, float32.
        score: Score of users and items.

    Returns:
        The reasons.
    """
    because: list[list[int]] = []
    content: list[float | None] = []
    histories = Histories(requesters.seen, len(requesters.names), len(vectors_ID))
    starts = np.searchsorted(rows_N, np.arange(len(requesters.names) + 1))
    for row in np.flatnonzero(np.diff(starts)):
        items = torch.from_numpy(items_N[starts[row] : starts[row + 1]])
        taken = torch.from_numpy(histories.items[histories.starts[row] : histories.starts[row + 1]])
        because += _nearest(items, taken[vectors_ID[taken].any(dim=1)], vectors_ID)
        if modal_items_ID is None:
            content += [None] * len(items)
        else:
            content += score(requesters.users_BD[row, None], modal_items_ID[items])[0].tolist()
    return Reasons(because, content)


def _nearest(items: Tensor, taken: Tensor, vectors_ID: Tensor) -> list[list[int]]:
    cosines = F.normalize(vectors_ID[items], dim=1) @ F.normalize(vectors_ID[taken], dim=1).T
    nearest = cosines.topk(min(REASONS, len(taken)), dim=1).indices
    found: list[list[int]] = taken[nearest].tolist()
    return found
