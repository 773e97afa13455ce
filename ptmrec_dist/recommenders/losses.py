"""Terms that several recommenders have in common.

Shape suffixes: B batch rows, Q queries, K keys, D width of the vectors.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ptmrec_dist.data.dataset import Interactions

_BLOCK_LOGITS = 2**25  # 128 MiB


def bpr_term(users_BD: Tensor, gaps_BD: Tensor) -> Tensor:
    """Compute the Bayesian personalised ranking loss -log sigmoid(u . (p - n)).

    Args:
        users_BD: User vectors, float32 [B, D].
        gaps_BD: Vector of the positive item minus that of the negative one, float32 [B, D].

    Returns:
        The loss of each row, float32 [B].
    """
    return -F.logsigmoid((users_BD * gaps_BD).sum(dim=1))


def l2_term(*tables_BD: Tensor) -> Tensor:
    """Compute half the squared norm of all vectors of a row, 1/2 (|u|^2 + |p|^2 + |n|^2).

    Args:
        *tables_BD: Vectors, float32 [B, *]; their widths may differ.

    Returns:
        The penalty of each row, float32 [B].
    """
    return 0.5 * torch.stack([table.square().sum(dim=1) for table in tables_BD]).sum(dim=0)


_HEAVIEST = 0.1
"""Weight of the penalty of the shortest histories: with more, little but popularity is learnt of them."""


def penalty_weight(given: float | None, train: Interactions, factor: float = 1.0) -> float:
    """Choose the weight of `l2_term` in a loss that is averaged over interactions.

    A vector is penalised once for each of its interactions. Of a prior that is the same for all data, whose weight does not
    grow with them, each interaction carries a part: 1 / the number of interactions of a user, here their mean, and at most 0.1.

    Args:
        given: The weight, if it is given.
        train: Training interactions.
        factor: What the choice is multiplied by, where something else is penalised than the vectors that are scored.

    Returns:
        The weight.
    """
    if given is not None:
        return given
    users = len(np.unique(train.users))
    return factor * min(_HEAVIEST, users / max(len(train.users), 1))


def info_nce(
    queries_QD: Tensor,
    own_BD: Tensor,
    keys_KD: Tensor,
    counts_K: Tensor,
    temperature: float,
    rows_B: Tensor | None = None,
) -> Tensor:
    r"""Compute the contrastive loss of rows: of a query against the row's own key among all keys of a batch.

    .. math::
        -\ln \frac{\exp(\cos(q, k_b) / t)}{\sum_k n_k \exp(\cos(q, k) / t)}

    with n_k the number of times that k occurs, or another weight.

    Args:
        queries_QD: Queries q, floating [Q, D].
        own_BD: The key k_b of each row, [B, D].
        keys_KD: All distinct keys, those of the rows included, [K, D].
        counts_K: How often each key occurs n_k, or another weight above 0, [K].
        temperature: Temperature t, 0.025 or more: below that, the exponentials overflow float32.
        rows_B: Query of each row, int64 [B]; by default each query has one row, and B is Q.

    Returns:
        The loss of each row, [B].
    """
    queries_QD, unit_KD = F.normalize(queries_QD) / temperature, F.normalize(keys_KD)
    unit_BD = unit_KD if own_BD is keys_KD else F.normalize(own_BD)
    return softmax_term(queries_QD, unit_BD, unit_KD, counts_K, rows_B, largest=1 / temperature)


def softmax_term(
    queries_QD: Tensor,
    own_BD: Tensor,
    keys_KD: Tensor,
    counts_K: Tensor,
    rows_B: Tensor | None = None,
    *,
    largest: float | None = None,
) -> Tensor:
    r"""Compute the cross-entropy of rows: of a query's dot products with all keys, the row's own key being the answer.

    .. math::
        -\ln \frac{\exp(q \cdot k_b)}{\sum_k n_k \exp(q \cdot k)}

    Distinct queries, and distinct keys with ln n_k added to their logits, give the value and the gradient of a sum over all
    of them one by one. Where Q x K exceeds `_BLOCK_LOGITS`, queries are taken in blocks whose logits are recomputed in the
    backward pass: memory stays at three blocks, whatever Q and K are.

    Args:
        queries_QD: Queries q, floating [Q, D].
        own_BD: The key k_b of each row, [B, D].
        keys_KD: All distinct keys, those of the rows included, [K, D].
        counts_K: How often each key occurs n_k, or another weight above 0, [K].
        rows_B: Query of each row, int64 [B]; by default each query has one row, and B is Q.
        largest: Upper bound of the dot products, from 0 to 40; by default their maxima are computed.

    Returns:
        The loss of each row, [B].
    """
    offsets_K = counts_K.to(queries_QD.dtype).log()
    blocks = queries_QD.split(max(1, _BLOCK_LOGITS // max(1, len(keys_KD))))
    log_sums = _LogSums.apply
    if len(blocks) > 1:
        log_sums = functools.partial(checkpoint, _LogSums.apply, use_reentrant=False, preserve_rng_state=False)
    totals_Q = torch.cat([log_sums(block_BD, keys_KD, offsets_K, largest) for block_BD in blocks])
    if rows_B is not None:
        totals_Q, queries_QD = totals_Q[rows_B], F.embedding(rows_B, queries_QD)
    return totals_Q - (queries_QD * own_BD).sum(dim=1)


class _LogSums(torch.autograd.Function):
    """Log of the sum over the keys of the exponentials of logits and offsets, [B].

    Its gradient is that of a softmax, whose denominators divide queries and results: no second table [B, K] is written.
    """

    @staticmethod
    def forward(ctx: Any, queries_BD: Tensor, keys_KD: Tensor, offsets_K: Tensor, largest: float | None) -> Tensor:
        if largest is None:
            logits_BK = torch.addmm(offsets_K, queries_BD, keys_KD.T)
            tops_B = logits_BK.amax(dim=1)
            exponentials_BK = logits_BK.sub_(tops_B[:, None]).exp_()
        else:
            # With the bound subtracted no exponential overflows, without a pass over [B, K] for the maximum.
            tops_B = queries_BD.new_full((), largest)
            exponentials_BK = torch.addmm(offsets_K - largest, queries_BD, keys_KD.T).exp_()
        sums_B = exponentials_BK.sum(dim=1)
        ctx.save_for_backward(queries_BD, keys_KD, exponentials_BK, sums_B)
        return sums_B.log() + tops_B

    @staticmethod
    def backward(ctx: Any, gradients_B: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries_BD, keys_KD, exponentials_BK, sums_B = ctx.saved_tensors
        scales_B1 = (gradients_B / sums_B)[:, None]
        return scales_B1 * (exponentials_BK @ keys_KD), exponentials_BK.T @ (scales_B1 * queries_BD), None, None
