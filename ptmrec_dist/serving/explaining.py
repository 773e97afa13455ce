"""Why an item is recommended: the items of the history that are most like it, and what IDs and features add to its score.

Legend: B rows of a request, N recommendations, I items, D width of the scores.
"""

from dataclasses import dataclass, field

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
class Scored:
    """What the lists of a request are ranked by."""

    vectors_ID: Tensor
    """Vectors that items are scored and compared by, float32; zero where an item has none."""
    id_columns: int | None
    """Leading columns of them that come from IDs alone, all others from features alone; None where columns have both."""
    modal_items_ID: Tensor | None
    """Vectors of the cold score, float32; None for a recommender that reads no features."""
    score: Score
    """Score of users and items; the dot product where `id_columns` is more than 0."""


@dataclass(frozen=True)
class Reasons:
    """Reasons for recommendations, one by one."""

    because: list[list[int]] = field(default_factory=list)
    """The items of the history with the largest cosine to the item, the most similar first."""
    from_ids: list[float | None] = field(default_factory=list)
    """What IDs contribute to the score; None where the score is no sum of that and of what features contribute."""
    from_features: list[float | None] = field(default_factory=list)
    """What features contribute to the score."""
    content_scores: list[float | None] = field(default_factory=list)
    """The cold score, which content alone gives; None for a recommender that reads no features."""


def reasons_for(requesters: Requesters, rows_N: np.ndarray, items_N: np.ndarray, scored: Scored) -> Reasons:
    """Find the reasons for recommendations.

    Args:
        requesters: Users and visitors of the request, [B].
        rows_N: Row of each recommendation, ascending, int64 [N].
        items_N: Its item, int64 [N].
        scored: What the lists are ranked by.

    Returns:
        The reasons.
    """
    reasons, vectors_ID = Reasons(), scored.vectors_ID
    histories = Histories(requesters.seen, len(requesters.names), len(vectors_ID))
    starts = np.searchsorted(rows_N, np.arange(len(requesters.names) + 1))
    for row in np.flatnonzero(np.diff(starts)):
        items = torch.from_numpy(items_N[starts[row] : starts[row + 1]])
        taken = torch.from_numpy(histories.items[histories.starts[row] : histories.starts[row + 1]])
        reasons.because.extend(_nearest(items, taken[vectors_ID[taken].any(dim=1)], vectors_ID))
        _add_scores(reasons, requesters.users_BD[row, None], items, scored)
    return reasons


def _add_scores(reasons: Reasons, user_1D: Tensor, items: Tensor, scored: Scored) -> None:
    """Add what IDs and features contribute to the scores of a user's items, and the scores of their content."""
    nothing: list[float | None] = [None] * len(items)
    vectors_ND, columns = scored.vectors_ID[items], scored.id_columns
    if columns is None:
        reasons.from_ids.extend(nothing)
        reasons.from_features.extend(nothing)
    else:
        from_ids_N = vectors_ND[:, :columns] @ user_1D[0, :columns]
        reasons.from_ids.extend(from_ids_N.tolist())
        reasons.from_features.extend((scored.score(user_1D, vectors_ND)[0] - from_ids_N).tolist())
    modal_ID = scored.modal_items_ID
    reasons.content_scores.extend(nothing if modal_ID is None else scored.score(user_1D, modal_ID[items])[0].tolist())


def _nearest(items: Tensor, taken: Tensor, vectors_ID: Tensor) -> list[list[int]]:
    cosines = F.normalize(vectors_ID[items], dim=1) @ F.normalize(vectors_ID[taken], dim=1).T
    nearest = cosines.topk(min(REASONS, len(taken)), dim=1).indices
    found: list[list[int]] = taken[nearest].tolist()
    return found
