r"""Fold-in of visitors without an account: estimate a user vector from a list of items.

A recommender has vectors for the users that it was trained on. The map from a history to such a vector is learned from
those users, for any recommender: a ridge regression of user vectors p on features v of their histories h,

.. math::
    v(h) = \frac{1}{|h| + n_0} \sum_{i \in h} (q_i - \bar q), \qquad p(h) = \bar p + W (v(h) - \bar v)

with item vectors q, their mean over the training interactions, and the means of p and v over the users. n_0 shrinks short
histories towards the mean, as a normal prior would, so that an empty one gets the list of an average user.

Measured on users held out of training entirely (a fifth of movies-small): Recall@20 of their remaining items, given a history
of 3 items or of 80 % of their items ("whole"):

| | BPR, 3 items | BPR, whole | LightGCN, 3 items | LightGCN, whole |
| --- | --- | --- | --- | --- |
| this map | .102 | .142 | .111 | .150 |
| mean of the items' vectors | .091 | .136 | .117 | .154 |
| least squares step of implicit ALS, best of five settings | .061 | .112 | .114 | .183 |
| popularity | .084 | .109 | .084 | .109 |

One random split of users, on which n_0 and the penalty were chosen too. The map beats popularity throughout, and the mean with
BPR; with LightGCN the mean is slightly better, and so is the least squares step, clearly so with whole histories. The map is
used because it is never far behind for short histories, keeps scores on the scale of known users, and also predicts the vectors
of the cold score.

Legend: U users, I items, B histories, E their entries, D width of item vectors, T width of what is predicted.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.recommenders.ridge import Ridge

PRIOR = 5.0
"""n_0: items that the mean counts for."""
PENALTY = 0.03
"""Of the regression, as a fraction of the mean eigenvalue of the covariance of the history features."""


@dataclass(frozen=True)
class FoldIn:
    """The map from histories to user vectors."""

    centre_D: Tensor
    """Mean vector of the items taken in training, float32 [D]."""
    weight_DT: Tensor
    """W, float32 [D, T]."""
    bias_T: Tensor
    """Vector of an empty history, float32 [T]."""

    def __call__(self, items_ID: Tensor, histories: Interactions, number: int) -> Tensor:
        """Compute user vectors.

        Args:
            items_ID: Vectors of all items, float32 [I, D].
            histories: Row of each entry, below `number`, and its item; a pair that occurs twice counts once.
            number: Number of histories B.

        Returns:
            float32 [B, T].
        """
        return _history_features(items_ID, histories, number, self.centre_D) @ self.weight_DT + self.bias_T


@torch.no_grad()
def fit_fold_in(users_UT: Tensor, items_ID: Tensor, train: Interactions) -> FoldIn:
    """Fit the map on the users of the training data.

    Args:
        users_UT: Regression target of each user, float32 [U, T].
        items_ID: Vectors of all items, float32 [I, D].
        train: Training interactions.

    Returns:
        The map, fitted on the users with a history.
    """
    popularity_I = torch.from_numpy(np.bincount(train.items, minlength=len(items_ID))).to(items_ID.dtype)
    centre_D = popularity_I / len(train.items) @ items_ID
    active = torch.from_numpy(np.flatnonzero(np.bincount(train.users, minlength=len(users_UT))))
    inputs_UD = _history_features(items_ID, train, len(users_UT), centre_D)[active]
    weight_DT = Ridge(inputs_UD, strengths=(PENALTY,)).weights(inputs_UD, users_UT[active]).float()
    return FoldIn(centre_D, weight_DT, users_UT[active].mean(dim=0) - inputs_UD.mean(dim=0) @ weight_DT)


def _history_features(items_ID: Tensor, histories: Interactions, number: int, centre_D: Tensor) -> Tensor:
    """Compute v of each history, [B, D]."""
    distinct = Histories(histories, number, len(items_ID))
    counts_B1 = torch.from_numpy(distinct.counts)[:, None]
    # A sparse product: item vectors are not copied per entry.
    items_E, starts_B = torch.from_numpy(distinct.items), torch.from_numpy(distinct.starts[:-1])
    sums_BD = F.embedding_bag(items_E, items_ID, starts_B, mode="sum")
    return (sums_BD - counts_B1 * centre_D) / (counts_B1 + PRIOR)
