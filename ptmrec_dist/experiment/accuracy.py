"""Tables of an experiment's accuracy and of its tests of significance."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.evaluation.metrics import SELECT, SHOWN, title_of
from ptmrec_dist.evaluation.tables import Entry, Table, mean_of_seeds
from ptmrec_dist.experiment.comparisons import TESTS, Row, Tested, corrected, means_of
from ptmrec_dist.experiment.grid import Cell

LEVEL = 0.05


@dataclass(frozen=True)
class Wording:
    """What the captions of an experiment's tables say, and how its rows are named."""

    config: ExperimentConfig
    """Settings."""
    parts: Mapping[str, str]
    """Part of the phase to what pages call it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that name a row."""
        encoder = ("encoder",) if self.config.encoders else ()
        return (*encoder, "recommender", "modalities", "paradigm", "method")

    def labels(self, row: Cell) -> list[Entry]:
        """Name a row.

        Args:
            row: The row.

        Returns:
            An entry for each of `names`.
        """
        return [Entry(getattr(row, name)) for name in self.names]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the tables."""
        return self.config.metrics or SHOWN

    @property
    def units(self) -> str:
        """What intervals and tests are over: splits where there are several, else seeds."""
        return "splits" if len(self.config.splits) > 1 else "seeds"

    @property
    def count(self) -> int:
        """Number of units."""
        return len(getattr(self.config, self.units))

    @property
    def averaged(self) -> str:
        """What values of a unit are means over."""
        return "means over users and seeds" if self.units == "splits" else "means over users"

    @property
    def runs_of_user(self) -> str:
        """What values of a user are means over."""
        return "over splits and seeds" if self.units == "splits" else "over seeds"

    @property
    def baseline(self) -> str:
        """What rows are tested against."""
        if self.config.baseline == "best":
            return "the best row of the recommender"
        encoder = self.config.baseline_encoder
        return self.config.baseline_paradigm if encoder is None else f"{self.config.baseline_paradigm} with {encoder}"

    @property
    def family(self) -> str:
        """Tests that are corrected together."""
        return "the table" if self.config.family == "part" else "the tests of a recommender and a metric"

    def corrected(self, comparisons: list[Tested], test: str) -> dict[tuple[Cell, str], float]:
        """Correct a test over the family of the settings.

        Args:
            comparisons: All of a part.
            test: One of `TESTS`.

        Returns:
            Row and metric to corrected p.
        """
        return corrected(comparisons, test, self.config.family)

    def part(self, part: str) -> str:
        """Name a part of the data.

        Args:
            part: Part of the phase.

        Returns:
            Such as `Test, cold items`.
        """
        return f"{self.config.phase.capitalize()}, {self.parts[part]}"


def accuracy_table(words: Wording, rows: Mapping[Cell, Row], part: str, comparisons: list[Tested]) -> Table:
    """Make the table of means, with both kinds of tests: marks at every value, and those of the selecting metric in full.

    Args:
        words: Names and captions.
        rows: Row to its runs, which all have the part.
        part: Part of the data.
        comparisons: All comparisons of the part.

    Returns:
        The table.
    """
    users, units = (words.corrected(comparisons, f"t_test_{over}") for over in ("users", "units"))
    means = {row: {metric: means_of(runs, part, metric) for metric in words.metrics} for row, runs in rows.items()}
    best = {metric: max(float(values[metric].mean()) for values in means.values()) for metric in words.metrics}
    selecting = title_of(SELECT)
    tests = [f"change of {selecting}", f"p over users, {selecting}", f"p over {words.units}, {selecting}"]
    table = Table(_caption(words, part), [*words.names, *words.metrics, *tests], keys=len(words.names))
    changes = {one.row: _change(one) for one in comparisons if one.metric == SELECT}
    for row, values in means.items():
        entries = [
            Entry(
                mean_of_seeds(values[metric]),
                best=float(values[metric].mean()) == best[metric],
                marks=_mark(users, row, metric, "*") + _mark(units, row, metric, "†"),
            )
            for metric in words.metrics
        ]
        p = [Entry(_p(found.get((row, SELECT), float("nan")))) for found in (users, units)]
        table.rows.append([*words.labels(row), *entries, Entry(changes.get(row, "")), *p])
    return table


def significance_table(words: Wording, comparisons: list[Tested], part: str) -> Table:
    """Make the table of all tests.

    Args:
        words: Names and captions.
        comparisons: All comparisons of the part.
        part: Part of the data.

    Returns:
        The table.
    """
    p = {test: words.corrected(comparisons, test) for test in TESTS}
    table = Table(
        f"{words.part(part)}, all metrics: difference from {words.baseline}, with its 95 % confidence interval over "
        f"{words.units}, not corrected, and p of paired tests over users (means {words.runs_of_user}) and over {words.units} "
        f"({words.averaged}), each corrected by Holm-Bonferroni over {words.family}. *: p < {LEVEL}.",
        [*words.names, "metric", "difference", "low", "high", *(test.replace("units", words.units) for test in TESTS)],
        keys=len(words.names) + 1,
    )
    for one in comparisons:
        values = [p[test][one.row, one.metric] for test in TESTS]
        entries = [Entry(_p(value), marks="*" if value < LEVEL else "") for value in values]
        ends = [Entry("" if np.isnan(end) else f"{end:+.4f}") for end in one.units.interval]
        difference = Entry(f"{one.units.difference:+.4f}")
        table.rows.append([*words.labels(one.row), Entry(one.metric), difference, *ends, *entries])
    return table


def _caption(words: Wording, part: str) -> str:
    count, units, baseline = words.count, words.units, words.baseline
    several = count > 1
    over = f"mean ± standard deviation over {count} {units}" if several else "one seed"
    same = (
        f"the same over the {count} {units} ({words.averaged})"
        if several
        else f"the same over {units}: not testable with one"
    )
    interval = f", with its 95 % confidence interval over the {count} {units}, not corrected" if several else ""
    splits = "" if units == "splits" else " One split of the data: no test over splits."
    return (
        f"{words.part(part)}: {over}. Bold: the best. Change: difference from {baseline}, in percent of its mean{interval}. "
        f"*: differs from {baseline} over users (paired t-test of each user's mean {words.runs_of_user}, p < {LEVEL}), which "
        f"says nothing about other {units}. †: {same}. Both corrected by Holm-Bonferroni over {words.family}.{splits}"
    )


def _change(one: Tested) -> str:
    """Difference from the baseline and its interval, in percent of the baseline's mean."""
    if not one.baseline:
        return ""
    change, low, high = (100 * value / one.baseline for value in (one.units.difference, *one.units.interval))
    return f"{change:+.1f}" + ("" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def _mark(found: Mapping[tuple[Cell, str], float], row: Cell, metric: str, sign: str) -> str:
    return sign if found.get((row, metric), 1.0) < LEVEL else ""


def _p(value: float) -> str:
    """Write p; nothing where there is none to test, as over one seed or for the baseline."""
    return "" if np.isnan(value) else f"{value:.3g}"
