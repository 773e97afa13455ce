r"""Maximal marginal relevance: a list of items that are relevant and unlike each other (Carbonell and Goldstein, SIGIR 1998).

Items are chosen one by one, each with the largest

.. math::
    (1 - \lambda)\, s(i) - \lambda \max_{j \in \text{chosen}} \cos(v_i, v_j)

of the best items of a user, whose scores s are scaled to [0, 1] for this.

Legend: B users, P pool of the best items, K items wanted, I items, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.evaluation.scoring import NO_ITEM

POOL = 10
"""Items in the pool for each one that is wanted."""
_LEAST = 100
_BLOCK = 256  # users at a time, whose pools' vectors are in memory


def pool_size(k: int) -> int:
    """Choose how many of the best items are considered.

    Args:
        k: Items wanted.

    Returns:
        P.
    """
    return max(POOL * k, _LEAST)


def diversified(
    items_BP: Tensor, scores_BP: Tensor, vectors_ID: Tensor, k: int, weight: float
) -> tuple[Tensor, Tensor]:
    """Choose items of a pool by maximal marginal relevance.

    Args:
        items_BP: The best items of each user, int64 [B, P], best first; `NO_ITEM` behind the last.
        scores_BP: Their scores, float32 [B, P].
        vectors_ID: Vectors of all items, float32 [I, D].
        k: Items wanted K, at most P.
        weight: Lambda; 0 keeps the order, 1 disregards all scores except for the first item's.

    Returns:
        Items int64 [B, K] and their scores float32 [B, K], in the order in which they were chosen.
    """
    blocks = zip(items_BP.split(_BLOCK), scores_BP.split(_BLOCK))
    orders = [_order(items, scores, F.normalize(vectors_ID[items], dim=2), k, weight) for items, scores in blocks]
    order_BK = torch.cat(orders)
    return items_BP.gather(1, order_BK), scores_BP.gather(1, order_BK)


def _order(items_BP: Tensor, scores_BP: Tensor, vectors_BPD: Tensor, k: int, weight: float) -> Tensor:
    """Positions in the pool, int64 [B, K]."""
    absent_BP = items_BP == NO_ITEM
    best_B1 = scores_BP[:, :1]
    worst_B1 = scores_BP.masked_fill(absent_BP, torch.inf).amin(dim=1, keepdim=True)
    relevance_BP = ((scores_BP - worst_B1) / (best_B1 - worst_B1).clamp(min=1e-12)).masked_fill(absent_BP, 0)
    likeness_BP = torch.zeros_like(relevance_BP)
    taken_BP = torch.zeros_like(absent_BP)
    chosen = [torch.zeros(len(items_BP), 1, dtype=torch.int64)]  # the best item comes first
    while len(chosen) < k:
        taken_BP = taken_BP.scatter(1, chosen[-1], True)
        last_BD1 = vectors_BPD.gather(1, chosen[-1][:, :, None].expand(-1, -1, vectors_BPD.shape[2])).transpose(1, 2)
        similarity_BP = (vectors_BPD @ last_BD1).squeeze(2)
        likeness_BP = similarity_BP if len(chosen) == 1 else torch.maximum(likeness_BP, similarity_BP)
        value_BP = (1 - weight) * relevance_BP - weight * likeness_BP
        # Absent items come last, behind everything that is left.
        value_BP = value_BP.masked_fill(absent_BP, -torch.finfo(value_BP.dtype).max).masked_fill(taken_BP, -torch.inf)
        chosen.append(value_BP.argmax(dim=1, keepdim=True))
    return torch.cat(chosen, dim=1)
