"""Is a difference more than luck: paired tests, corrected for how many were made.

Legend: N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """What two paired tests say of a difference."""

    difference: float
    """Mean of the differences."""
    t_test: float
    """p of Student's paired t-test, two-sided; NaN where it cannot be made."""
    wilcoxon: float
    """p of Wilcoxon's signed-rank test, two-sided; NaN where it cannot be made."""

    @property
    def p(self) -> float:
        """P of the t-test, or where all pairs differ by the same, so that it cannot be made, of Wilcoxon's."""
        return self.wilcoxon if np.isnan(self.t_test) else self.t_test

    @property
    def p_of_loss(self) -> float:
        """The same, one-sided: how likely at least such a loss would be if there were none."""
        return self.p / 2 if self.difference < 0 else 1 - self.p / 2


def compare(ours_N: np.ndarray, theirs_N: np.ndarray) -> Paired:
    """Test whether paired values differ.

    With few pairs Wilcoxon's test has a smallest p that it can give, 2 ** (1 - N): with five seeds .0625.

    Args:
        ours_N: Values [N].
        theirs_N: Values of the same users or seeds, in the same order, [N].

    Returns:
        Mean difference and the p of both tests; 1 where no pair differs.

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
        return Paired(mean, 1.0, 1.0)
    if np.ptp(gaps_N) <= 1e-12 * np.abs(gaps_N).max():  # all alike but for rounding: a spread of zero divides by zero
        return Paired(mean, float("nan"), float(stats.wilcoxon(gaps_N).pvalue))
    return Paired(mean, float(stats.ttest_1samp(gaps_N, 0.0).pvalue), float(stats.wilcoxon(gaps_N).pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p of several tests by Holm and Bonferroni's way, so that one false alarm among all stays rare.

    Args:
        values: p of each test; NaN for one that could not be made, which does not count.

    Returns:
        Corrected p in the same order, NaN where it was.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    from statsmodels.stats.multitest import multipletests

    given = np.array(values, dtype=np.float64)
    made = ~np.isnan(given)
    if made.any():
        given[made] = multipletests(given[made], method="holm")[1]
    corrected: list[float] = given.tolist()
    return corrected
