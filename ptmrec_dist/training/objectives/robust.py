"""Robustness-aware contrast (RCL): histories are contrasted with their noised versions (PMMRec, arXiv 2312.09602, eq. 11).

    -log exp(h_u . h~_u / sqrt(D)) / sum_k exp(h_u . h~_k / sqrt(D))

h_u and h~_u are the means of the states after the items of a history and of the noised one, k runs over the sequences of the
step. States have a length of about sqrt(D). In the paper items have it too, and dot products are not divided; here items start
with length 1 (`recommenders/sequential/fusion.py`), so that undivided ones would outweigh the scores of items. Cosines with a
temperature are the other choice.

Legend: V users of this rank, U users of the step, L items that are read, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled(states_VLD: Tensor, mask_VL: Tensor) -> Tensor:
    """Average the states of histories.

    Args:
        states_VLD: States, 0 where there is padding, [V, L, D].
        mask_VL: Whether there is an item, bool [V, L].

    Returns:
        [V, D]; 0 for an empty history.
    """
    return states_VLD.sum(dim=1) / mask_VL.sum(dim=1, keepdim=True).clamp(min=1)


def robust_contrast(
    clean_VD: Tensor, noised_UD: Tensor, own_V: Tensor, counted_U: Tensor, temperature: float | None
) -> Tensor:
    """Compute the loss of users.

    Args:
        clean_VD: Pooled states of histories, [V, D].
        noised_UD: Pooled states of the noised histories of all users, [U, D].
        own_V: Row of each user among them, int64 [V].
        counted_U: Whether a row is a user, bool [U].
        temperature: Compare cosines, divided by it; None compares dot products, divided by sqrt(D).

    Returns:
        [V].
    """
    if temperature is None:
        clean_VD = clean_VD / math.sqrt(clean_VD.shape[1])
    else:
        clean_VD, noised_UD = F.normalize(clean_VD, dim=1) / temperature, F.normalize(noised_UD, dim=1)
    scores_VU = (clean_VD @ noised_UD.T).masked_fill(~counted_U, torch.finfo(clean_VD.dtype).min)
    return F.cross_entropy(scores_VU, own_V, reduction="none")
