"""Paired significance tests, with correction for multiple testing.

Legend: N pairs.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """Results of two paired tests of a difference."""

    difference: float
    """Mean of the differences."""
    t_test: float
    """p of Student's paired t-test, two-sided; NaN if undefined."""
    wilcoxon: float
    """p of Wilcoxon's signed-rank test, two-sided; NaN if undefined."""
    interval: tuple[float, float] = (float("nan"), float("nan"))
    """95 % confidence interval of the difference, of the t-test; NaN with fewer than two pairs."""

    @property
    def p(self) -> float:
        """P of the t-test; of Wilcoxon's test if all pairs differ by the same amount, where the t-test is undefined."""
        return self.wilcoxon if np.isnan(self.t_test) else self.t_test

    @property
    def p_of_loss(self) -> float:
        """One-sided `p` of a loss: the probability of at least this loss under the null hypothesis of no loss."""
        return self.p / 2 if self.difference < 0 else 1 - self.p / 2


def compare(ours_N: np.ndarray, theirs_N: np.ndarray) -> Paired:
    """Test whether paired values differ.

    With N pairs, the smallest p of Wilcoxon's test is 2 ** (1 - N): .0625 with five seeds.

    Args:
        ours_N: Values [N].
        theirs_N: Values of the same users, seeds or splits, in the same order, [N].

    Returns:
        Mean difference, its confidence interval, and the p of both tests; 1 if no pair differs.

    Raises:
        ValueError: Different numbers of values.
    """
    from scipy import stats

    if ours_N.shape != theirs_N.shape:
        raise ValueError(f"got {len(ours_N)} and {len(theirs_N)} values, expected pairs")
    gaps_N = ours_N - theirs_N
    mean = float(gaps_N.mean()) if len(gaps_N) else float("nan")
    if len(gaps_N) < 2:
        return Paired(mean, float("nan"), float("nan"))
    if not gaps_N.any():
        return Paired(mean, 1.0, 1.0, (0.0, 0.0))
    if np.ptp(gaps_N) <= 1e-12 * np.abs(gaps_N).max():  # equal up to rounding: the t-test would divide by zero
        return Paired(mean, float("nan"), float(stats.wilcoxon(gaps_N).pvalue), (mean, mean))
    t_test = stats.ttest_1samp(gaps_N, 0.0)
    low, high = t_test.confidence_interval(0.95)
    wilcoxon = float(stats.wilcoxon(gaps_N).pvalue)
    return Paired(mean, float(t_test.pvalue), wilcoxon, (float(low), float(high)))


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p values of several tests by the Holm-Bonferroni method, which controls the family-wise error rate.

    Args:
        values: p of each test; NaN for an undefined one, which is not counted.

    Returns:
        Corrected p in the same order, NaN for undefined ones.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    from statsmodels.stats.multitest import multipletests

    given = np.array(values, dtype=np.float64)
    defined = ~np.isnan(given)
    gc.freeze()  # `multipletests` collects garbage at each call: a second where as much is loaded as here
    try:
        if defined.any():
            given[defined] = multipletests(given[defined], method="holm")[1]
    finally:
        gc.unfreeze()
    corrected: list[float] = given.tolist()
    return corrected
