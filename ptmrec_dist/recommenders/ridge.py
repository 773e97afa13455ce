"""Ridge regressions of several targets on the same inputs.

Shape suffixes: N rows to learn from, X width of the inputs, D width of the targets, S strengths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.distributed import World, sum_over_ranks

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidate strengths of the penalty, as fractions of the mean eigenvalue of the inputs' covariance, so that they suit inputs
of any scale and width."""


class Ridge:
    r"""Ridge regressions with an intercept: what depends on the inputs alone is computed once.

    .. math::
        W = V (\Lambda + \lambda)^{-1} V^T (X - \bar x)^T (Y - \bar y), \qquad V \Lambda V^T = (X - \bar x)^T (X - \bar x)

    Collective where there are `owners`, as its methods are: every rank must call it, and gets the same weights.

    Args:
        inputs_NX: float32 [N, X]; passed again to the methods, so that no copy of it is kept.
        strengths: Candidates for the penalty, as fractions of the mean of the eigenvalues.
        owners: Ranks of which each has some of the rows; by default this process has all.
    """

    def __init__(
        self, inputs_NX: Tensor, strengths: tuple[float, ...] = STRENGTHS, owners: World | None = None
    ) -> None:
        self.strengths = strengths
        self._owners = owners
        self._rows = self._total(inputs_NX.new_tensor(len(inputs_NX)))
        self._mean_X = self._total(inputs_NX.sum(dim=0)) / self._rows
        centred_NX = inputs_NX - self._mean_X
        eigenvalues_X, self._basis_XX = torch.linalg.eigh(self._total(centred_NX.T @ centred_NX).double())
        penalties_S = eigenvalues_X.mean().clamp(min=1e-12) * eigenvalues_X.new_tensor(strengths)
        self._inverses_SX = 1 / (eigenvalues_X.clamp(min=0) + penalties_S[:, None])
        squares_NX = (centred_NX @ self._basis_XX.to(centred_NX.dtype)).square_()
        self._leverages_NS = squares_NX @ self._inverses_SX.to(squares_NX.dtype).T + 1 / self._rows

    def weights(self, inputs_NX: Tensor, targets_ND: Tensor) -> Tensor:
        """Fit targets, with the strength that leave-one-out cross-validation of the cosine to the target chooses.

        For a ridge regression this needs no refitting: with the leverage h_n of a row, its left-out residual is 1 / (1 - h_n)
        times its residual in the regression with it. The cosine is averaged, so that rows count equally whatever the length
        of their targets: that of items' vectors grows with their popularity.

        The intercept is not returned: it maps the mean of the inputs to the mean of the targets.

        Args:
            inputs_NX: What it was made from, float32 [N, X].
            targets_ND: float32 [N, D].

        Returns:
            Weights, float64 [X, D].

        Source: Allen, The relationship between variable selection and data augmentation, Technometrics 1974 (PRESS).
        """
        centred_NX, centred_ND = self._centred(inputs_NX, targets_ND)
        moments_XD = self._moments(centred_NX, centred_ND)
        return self._solve(moments_XD, self._best(centred_NX, centred_ND, moments_XD))

    def _best(self, centred_NX: Tensor, centred_ND: Tensor, moments_XD: Tensor) -> int:
        if len(self.strengths) == 1:
            return 0

        def cosine(index: int) -> float:
            residuals_ND = centred_ND - centred_NX @ self._solve(moments_XD, index).to(centred_NX.dtype)
            left_out_ND = centred_ND - residuals_ND / (1 - self._leverages_NS[:, index]).clamp(min=1e-6)[:, None]
            return self._total(F.cosine_similarity(left_out_ND, centred_ND).sum()).item()

        return max(range(len(self.strengths)), key=cosine)

    def _centred(self, inputs_NX: Tensor, targets_ND: Tensor) -> tuple[Tensor, Tensor]:
        return inputs_NX - self._mean_X, targets_ND - self._total(targets_ND.sum(dim=0)) / self._rows

    def _moments(self, centred_NX: Tensor, centred_ND: Tensor) -> Tensor:
        """V^T X^T Y of centred rows, float64 [X, D]."""
        moments_XD: Tensor = self._basis_XX.T @ self._total(centred_NX.T @ centred_ND).double()
        return moments_XD

    def _solve(self, moments_XD: Tensor, index: int) -> Tensor:
        weights_XD: Tensor = self._basis_XX @ (self._inverses_SX[index][:, None] * moments_XD)
        return weights_XD

    def _total(self, values: Tensor) -> Tensor:
        """Sum over the ranks what each has computed of its rows."""
        return values if self._owners is None else sum_over_ranks(values)
