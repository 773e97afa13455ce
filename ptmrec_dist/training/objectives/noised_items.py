"""Noised item detection (NID): which items of a history were shuffled or replaced (PMMRec, arXiv 2312.09602, eq. 10).

Noise is a function of the seed, the step, the user and the position alone, and so the same on any number of ranks. Departures:
each item is chosen by itself with the given probability instead of an exact fraction of a history; shuffled items change places
along a random cycle, so that none stays; one that is alone, or whose place an equal one took, counts as unchanged; padding is
neither noised nor counted. The printed log(ReLU(.)) is minus infinity at 0: it is read as the cross-entropy of a softmax over
the positive parts. Where no output is positive that has no gradient; without the ReLU it has one everywhere.

Legend: V users of this rank, L items that are read, G distinct items of the step, R positions that count, K classes, T tries.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.training.objectives.losses import hashed_choice

UNCHANGED, SHUFFLED, REPLACED = range(3)
_RANGE = 2**53  # of random numbers, which a float64 holds
_TRIES = 8  # candidates to replace an item, of which the first that the user did not take is chosen


class Noised(NamedTuple):
    """Histories with noise."""

    inputs: Tensor
    """Items that are read, as columns, int64 [V, L]."""
    labels: Tensor
    """`UNCHANGED`, `SHUFFLED` or `REPLACED`, int64 [V, L]."""


def noised(
    inputs_VL: Tensor, mask_VL: Tensor, users_V: Tensor, hidden_VG: Tensor, shuffle: float, replace: float, salt: int
) -> Noised:
    """Shuffle some items of every history among themselves, and replace others by items of other users.

    Args:
        inputs_VL: Items that are read, as columns, int64 [V, L].
        mask_VL: Whether there is an item, bool [V, L].
        users_V: User indices, int64 [V].
        hidden_VG: Items that a user took, bool [V, G].
        shuffle: Probability that an item is shuffled.
        replace: Probability that an item is replaced; not both happen to one.
        salt: Seed and step.

    Returns:
        The noised histories. An item stays where no candidate is free.
    """
    users_VL, positions_VL = _grid(users_V, inputs_VL.shape[1])
    bound = torch.full((), _RANGE, device=users_V.device)
    random_N2 = hashed_choice(users_VL.flatten(), positions_VL.flatten(), bound, salt, 2)
    uniform_VL, order_VL = (part.view_as(inputs_VL) for part in random_N2.unbind(dim=1))
    uniform_VL = uniform_VL.double() / _RANGE
    found_VL = _permuted(inputs_VL, mask_VL & (uniform_VL < shuffle), order_VL)
    labels_VL = torch.where(found_VL != inputs_VL, SHUFFLED, UNCHANGED)
    chosen_VL = mask_VL & (uniform_VL >= shuffle) & (uniform_VL < shuffle + replace)
    candidates_VL, free_VL = _of_others(users_VL, positions_VL + inputs_VL.shape[1], hidden_VG, salt)
    replaced_VL = chosen_VL & free_VL
    return Noised(candidates_VL.where(replaced_VL, found_VL), labels_VL.masked_fill(replaced_VL, REPLACED))


def detection_loss(outputs_RK: Tensor, labels_R: Tensor, relu: bool) -> Tensor:
    """Compute the cross-entropy of the classes.

    Args:
        outputs_RK: Outputs of the classifier, [R, K].
        labels_R: Classes, int64 [R].
        relu: Read the positive parts of the outputs.

    Returns:
        [R].
    """
    return F.cross_entropy(outputs_RK.relu() if relu else outputs_RK, labels_R, reduction="none")


def _grid(users_V: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """User and position of every slot, int64 [V, L] each."""
    positions_L = torch.arange(length, device=users_V.device)
    return users_V[:, None].expand(-1, length), positions_L.expand(len(users_V), -1)


def _permuted(inputs_VL: Tensor, chosen_VL: Tensor, order_VL: Tensor) -> Tensor:
    """Move each of a row's chosen items to the place of the next one in a random order, and the last to that of the first."""
    from_VL = order_VL.where(chosen_VL, _RANGE).argsort(dim=1, stable=True)  # the chosen ones first
    ranks_L, counts_V1 = torch.arange(inputs_VL.shape[1], device=inputs_VL.device), chosen_VL.sum(dim=1, keepdim=True)
    next_VL = torch.where(ranks_L < counts_V1, (ranks_L + 1) % counts_V1.clamp(min=1), ranks_L)
    return inputs_VL.scatter(1, from_VL.gather(1, next_VL), inputs_VL.gather(1, from_VL))


def _of_others(users_VL: Tensor, numbers_VL: Tensor, hidden_VG: Tensor, salt: int) -> tuple[Tensor, Tensor]:
    """For every slot an item of the step that its user did not take, and whether one was found, [V, L] each."""
    bound = torch.full((), hidden_VG.shape[1], device=hidden_VG.device)
    sampled_NT = hashed_choice(users_VL.flatten(), numbers_VL.flatten(), bound, salt, _TRIES)
    sampled_VX = sampled_NT.view(len(users_VL), -1)
    free_NT = ~hidden_VG.gather(1, sampled_VX).view_as(sampled_NT)
    first_N1 = free_NT.int().argmax(dim=1, keepdim=True)
    return sampled_NT.gather(1, first_N1).view_as(users_VL), free_NT.any(dim=1).view_as(users_VL)
