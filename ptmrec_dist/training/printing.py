"""Metrics of runs as tables on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.evaluation.metrics import COLD_SHOWN, SELECT, SHOWN, read_metrics
from ptmrec_dist.training.evaluator import Metrics
from ptmrec_dist.training.records import RunRecord


def print_metrics(metrics: Metrics, title: str | None = None) -> None:
    """Print metrics as a table.

    Args:
        metrics: Part to metric to value.
        title: What they are of, on a line above; by default nothing.
    """
    rows = [[part, *(f"{values[name]:.4f}" for name in SHOWN)] for part, values in metrics.items()]
    _print_table(["part"], SHOWN, [rows], title)


def print_cold_start(found: Metrics) -> None:
    """Print metrics of cold rows as a table.

    Args:
        found: Set of rows to their number and metrics.
    """
    rows = [
        [name, f"{values['rows']:,.0f}", *(f"{values[metric]:.4f}" for metric in COLD_SHOWN)]
        for name, values in found.items()
    ]
    _print_table(["cold rows"], ["number", *COLD_SHOWN], [rows])


def print_beyond(properties: Metrics) -> None:
    """Print what lists are like besides their accuracy, a column for each part.

    Args:
        properties: Part to property to value.
    """
    names = dict.fromkeys(name for values in properties.values() for name in values)
    rows = [[name, *_formatted(values.get(name) for values in properties.values())] for name in names]
    _print_table(["lists of 20"], list(properties), [rows])


def stages_of(folder: Path, record: RunRecord) -> dict[str, Metrics]:
    """Read the present metrics of a refit and of the runs before it.

    Args:
        folder: Run folder of a refit.
        record: Its lineage.

    Returns:
        `stage 1`, `stage 2` (of joint training `joint`) and `refit` to metrics; without runs that are no longer there.
    """
    before = {"joint" if record.stage1 is None else "stage 2": record.stage2, "stage 1": record.stage1}
    folders = {name: Path(made["path"]) for name, made in reversed(before.items()) if made is not None}
    there = {name: path for name, path in folders.items() if (path / "metrics.json").is_file()}
    return {name: read_metrics(path) for name, path in {**there, "refit": folder}.items()}


def print_comparison(runs: Mapping[str, Metrics]) -> None:
    """Print metrics of several runs side by side, a column for each part.

    Args:
        runs: Name of a run to its metrics.
    """
    parts = [part for part in PARTS if any(part in metrics for metrics in runs.values())]
    sections = [
        [[name, run, *_formatted(metrics.get(part, {}).get(name) for part in parts)] for run, metrics in runs.items()]
        for name in (SELECT, "ndcg@20")
    ]
    _print_table(["metric", "run"], parts, sections)


def _formatted(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in values]


def _print_table(
    texts: Sequence[str],
    numbers: Sequence[str],
    sections: Sequence[Sequence[Sequence[str]]],
    title: str | None = None,
) -> None:
    """Print rows in sections: columns of texts, then columns of numbers, which are aligned on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in texts:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    Console().print(table)
