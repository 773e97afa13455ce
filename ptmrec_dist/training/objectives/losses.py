"""The losses of stage 2 as pure functions.

Legend: V users of this rank (distinct users or rows), G items of the global batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def knowledge_transfer(student_VG: Tensor, teacher_VG: Tensor, counted_VG: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(prob_id || prob_m) of every user over the items of the global batch.

    The teacher's distribution is a constant: what the ID vectors know teaches the features, never the other way. The
    paper writes the arguments the other way round; `F.kl_div(log_prob_m, prob_id)`, which it computes, is this one.

    Args:
        student_VG: Scores of projected features e_u . Linear(e_m), float32 [V, G].
        teacher_VG: Scores of ID vectors e_u . e_id, float32 [V, G].
        counted_VG: Items that are part of a user's distribution, bool [V, G] or [1, G].
        temperature: Divides both scores.

    Returns:
        Divergence of each user, float32 [V].

    Source: PTMRec eq. 11 to 13.
    """
    left_out = ~counted_VG
    lowest = torch.finfo(student_VG.dtype).min  # not -inf: 0 * -inf would be NaN
    log_student_VG = F.log_softmax((student_VG / temperature).masked_fill(left_out, lowest), dim=1)
    teacher_VG = F.softmax((teacher_VG.detach() / temperature).masked_fill(left_out, lowest), dim=1)
    return F.kl_div(log_student_VG, teacher_VG, reduction="none").sum(dim=1)


def hashed_choice(users_R: Tensor, items_R: Tensor, counts: Tensor, salt: int, tries: int) -> Tensor:
    """Generate numbers that depend on (salt, user, item) alone.

    A random number that is a function of its row and not of a rank's generator is the same on any number of ranks.

    Args:
        users_R: int64 [R].
        items_R: int64 [R].
        counts: Exclusive upper bound, int64 scalar tensor.
        salt: Seed and step.
        tries: Numbers per row T.

    Returns:
        int64 [R, T], in 0 .. counts - 1.
    """
    tries_T = torch.arange(tries, device=users_R.device)
    # splitmix64's finaliser; int64 arithmetic wraps around, shifts are masked to be logical.
    mixed = _mix(_mix(_mix(users_R[:, None] + _wrap(salt)) + items_R[:, None]) + tries_T)
    return (mixed & 0x7FFF_FFFF_FFFF_FFFF) % counts.clamp(min=1)


def _mix(values: Tensor) -> Tensor:
    values = values + _wrap(0x9E37_79B9_7F4A_7C15)
    values = (values ^ ((values >> 30) & (2**34 - 1))) * _wrap(0xBF58_476D_1CE4_E5B9)
    values = (values ^ ((values >> 27) & (2**37 - 1))) * _wrap(0x94D0_49BB_1331_11EB)
    return values ^ ((values >> 31) & (2**33 - 1))


def _wrap(value: int) -> int:
    """The signed 64-bit integer with the bits of `value`."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
