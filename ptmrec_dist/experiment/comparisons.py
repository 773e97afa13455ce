"""Rows of an experiment's tables tested against their baseline: over splits or else seeds, and over users.

Shape suffixes: U splits (or else seeds), R runs, N users with positives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ptmrec_dist.evaluation.metrics import SHOWN
from ptmrec_dist.evaluation.outcomes import SeedRun
from ptmrec_dist.evaluation.ranking import metrics_of
from ptmrec_dist.evaluation.significance import Paired, compare, holm
from ptmrec_dist.experiment.grid import Cell

TESTS = ("t_test_users", "wilcoxon_users", "t_test_units", "wilcoxon_units")
"""Names of the tests; units are splits where there are several, else seeds."""


@dataclass(frozen=True)
class PerUser:
    """Metrics of the users of a run."""

    ids: np.ndarray
    """Ids of the users with positives, [N]: indices differ between splits."""
    values: Mapping[str, np.ndarray]
    """Metric to float64 [N]."""


Row = Mapping[Cell, Mapping[str, PerUser]]
"""Cell of a row to part to metrics."""


@dataclass(frozen=True)
class Tested:
    """A row of the tables against its baseline, on one metric of one part."""

    row: Cell
    """The row."""
    metric: str
    """Metric."""
    units: Paired
    """Over splits, or where there is one over seeds."""
    users: Paired
    """Over users."""
    baseline: float
    """Mean of the baseline."""

    def p(self, test: str) -> float:
        """Return p of a test, not corrected.

        Args:
            test: One of `TESTS`.

        Returns:
            Its p; NaN if it is undefined.
        """
        name, _, over = test.rpartition("_")
        value: float = getattr(getattr(self, over), name)
        return value


def per_user(run: SeedRun, user_ids: np.ndarray) -> dict[str, PerUser]:
    """Compute the metrics of every user of a run.

    Args:
        run: The run.
        user_ids: Id of each user of its data set.

    Returns:
        Part to metrics.
    """
    found = {part: metrics_of(ranked) for part, ranked in run.ranked.items()}
    return {part: PerUser(user_ids[metrics.users], metrics.values) for part, metrics in found.items()}


def means_of(row: Row, part: str, metric: str) -> np.ndarray:
    """Average a metric over users, and over the seeds of each split.

    Args:
        row: Runs of a row.
        part: Part.
        metric: Metric.

    Returns:
        A mean for each split, or where there is one for each seed, float64 [U].
    """
    values = {cell: float(found[part].values[metric].mean()) for cell, found in row.items()}
    splits = sorted({cell.split for cell in row})
    if len(splits) == 1:
        return np.array([value for _, value in sorted(values.items())])
    return np.array([np.mean([value for cell, value in values.items() if cell.split == split]) for split in splits])


def compare_rows(rows: Mapping[Cell, Row], baseline: str, part: str) -> list[Tested]:
    """Test every row against its baseline on every metric.

    Args:
        rows: Row to its runs, which all have the part.
        baseline: Paradigm of the baseline.
        part: Part.

    Returns:
        The comparisons; none for a row without a baseline.
    """
    found = []
    for row, ours in rows.items():
        same_method = replace(row, paradigm=baseline)
        base = same_method if same_method in rows else replace(same_method, method="none")
        if row.paradigm == baseline or base not in rows:
            continue
        for metric in SHOWN:
            ours_U, theirs_U = (means_of(one, part, metric) for one in (ours, rows[base]))
            users = compare(*(_means_of_users(one, part, metric) for one in (ours, rows[base])))
            found.append(Tested(row, metric, compare(ours_U, theirs_U), users, float(theirs_U.mean())))
    return found


def corrected(comparisons: list[Tested], test: str) -> dict[tuple[Cell, str], float]:
    """Correct a test by Holm-Bonferroni over all rows and metrics of a part.

    Args:
        comparisons: All of the part.
        test: One of `TESTS`.

    Returns:
        Row and metric to corrected p.
    """
    values = holm([comparison.p(test) for comparison in comparisons])
    return {(one.row, one.metric): value for one, value in zip(comparisons, values, strict=True)}


def _means_of_users(row: Row, part: str, metric: str) -> np.ndarray:
    """Mean of each user over the runs in which the user has positives, float64 [N]."""
    ids_R = np.concatenate([found[part].ids for found in row.values()])
    values_R = np.concatenate([found[part].values[metric] for found in row.values()])
    _, users_R = np.unique(ids_R, return_inverse=True)
    means: np.ndarray = np.bincount(users_R, weights=values_R) / np.bincount(users_R)
    return means
