"""Rows of an experiment's tables tested against their baseline: over splits or else seeds, and over users.

Shape suffixes: U splits (or else seeds), R runs, N users with positives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.evaluation.metrics import SELECT, SHOWN
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


def compare_rows(rows: Mapping[Cell, Row], config: ExperimentConfig, part: str) -> list[Tested]:
    """Test every row against its baseline on every metric.

    Args:
        rows: Row to its runs, which all have the part.
        config: Settings, which name the baseline.
        part: Part.

    Returns:
        The comparisons; none for a baseline or a row without one.
    """
    found = []
    for row, metric in product(rows, dict.fromkeys((*(config.metrics or SHOWN), SELECT))):
        base = (
            _best_of(rows, row, part, metric) if config.baseline_paradigm == "best" else _baseline_of(rows, row, config)
        )
        if base is None or base == row:
            continue
        ours, theirs = rows[row], rows[base]
        ours_U, theirs_U = (means_of(one, part, metric) for one in (ours, theirs))
        users = compare(*(_means_of_users(one, part, metric) for one in (ours, theirs)))
        found.append(Tested(row, metric, compare(ours_U, theirs_U), users, float(theirs_U.mean())))
    return found


def corrected(comparisons: list[Tested], test: str, family: str) -> dict[tuple[Cell, str], float]:
    """Correct a test by Holm-Bonferroni.

    Args:
        comparisons: All of a part.
        test: One of `TESTS`.
        family: Tests that are corrected together: `part` for all, `recommender` for those of a recommender, its modalities
            and a metric.

    Returns:
        Row and metric to corrected p.
    """
    families: dict[tuple[str, ...], list[Tested]] = {}
    for one in comparisons:
        together = () if family == "part" else (one.row.recommender, one.row.modalities, one.metric)
        families.setdefault(together, []).append(one)
    values: dict[tuple[Cell, str], float] = {}
    for members in families.values():
        p = holm([one.p(test) for one in members])
        values |= {(one.row, one.metric): value for one, value in zip(members, p, strict=True)}
    return values


def _baseline_of(rows: Mapping[Cell, Row], row: Cell, config: ExperimentConfig) -> Cell | None:
    """The row of the baseline's paradigm and encoder: of the same method, or where it has none without one."""
    encoder = row.encoder if config.baseline_encoder is None else config.baseline_encoder
    same_method = replace(row, paradigm=config.baseline_paradigm, encoder=encoder)
    return next((base for base in (same_method, replace(same_method, method="none")) if base in rows), None)


def _best_of(rows: Mapping[Cell, Row], row: Cell, part: str, metric: str) -> Cell:
    alike = [one for one in rows if (one.recommender, one.modalities) == (row.recommender, row.modalities)]
    return max(alike, key=lambda one: means_of(rows[one], part, metric).mean())


def _means_of_users(row: Row, part: str, metric: str) -> np.ndarray:
    """Mean of each user over the runs in which the user has positives, float64 [N]."""
    ids_R = np.concatenate([found[part].ids for found in row.values()])
    values_R = np.concatenate([found[part].values[metric] for found in row.values()])
    _, users_R = np.unique(ids_R, return_inverse=True)
    means: np.ndarray = np.bincount(users_R, weights=values_R) / np.bincount(users_R)
    return means
