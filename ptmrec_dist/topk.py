"""Top-k of rows that are far longer than k.

Shape suffixes: B rows, C columns, K numbers wanted.
"""

import torch
from torch import Tensor

_GROUP = 16


def largest(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest numbers of each row: they lie in the k groups of columns with the largest maxima.

    The group maxima take one pass at memory bandwidth, after which `topk` reads only a fraction of the row. Which of several
    equal numbers is returned is unspecified, as with `torch.topk`.

    Args:
        scores_BC: Any floating dtype [B, C]; NaN counts as larger than any number.
        k: Numbers wanted K, at most C.

    Returns:
        The numbers [B, K], largest first, and their columns, int64 [B, K].
    """
    groups = scores_BC.shape[1] // _GROUP
    if groups < 2 * k:
        return scores_BC.topk(k, dim=1)
    best_BK = group_maxima(scores_BC).topk(k, dim=1, sorted=False).indices
    # The columns at the end that belong to no group are always included.
    members_G1 = torch.arange(0, groups * _GROUP, groups, device=scores_BC.device)[:, None]
    rest_R = torch.arange(groups * _GROUP, scores_BC.shape[1], device=scores_BC.device)
    members_BC = (best_BK[:, None, :] + members_G1).flatten(1)
    columns_BC = torch.cat([members_BC, rest_R.expand(len(scores_BC), -1)], dim=1)
    scores_BK, indices_BK = scores_BC.gather(1, columns_BC).topk(k, dim=1)
    return scores_BK, columns_BC.gather(1, indices_BK)


def group_maxima(scores_BC: Tensor) -> Tensor:
    """Find the largest number of each of C // 16 groups of columns.

    A group is every (C // 16)-th column, so that the maxima of all groups are computed side by side; up to 15 columns at the
    end belong to none.

    Args:
        scores_BC: Any floating dtype [B, C].

    Returns:
        [B, C // 16]; NaN where a group holds one.
    """
    groups = scores_BC.shape[1] // _GROUP
    if scores_BC.stride(0) == 1:  # columns are contiguous: torch follows the order of memory only if asked to
        grouped_CB: Tensor = scores_BC.T[: groups * _GROUP].unflatten(0, (_GROUP, groups))
        return grouped_CB.amax(dim=0).T
    grouped_BC: Tensor = scores_BC[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    return grouped_BC.amax(dim=1)
