"""Terms that several recommenders have in common.

Shape suffixes: B batch rows, D width of the vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
