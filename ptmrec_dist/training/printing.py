"""Metrics of runs as tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path

from ptmrec_dist.data.splits import PARTS
from ptmrec_dist.evaluation.metrics import COLD_SHOWN, SELECT, SHOWN, read_metrics
from ptmrec_dist.training.records import RunRecord

Metrics = Mapping[str, Mapping[str, float]]
"""Part to metric to value."""


def print_metrics(metrics: Metrics) -> None:
    """Print metrics as a table.

    Args:
        metrics: Part to metric to value.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("part", *SHOWN):
        table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
    for part, values in metrics.items():
        table.add_row(part, *(f"{values[name]:.4f}" for name in SHOWN))
    Console().print(table)


def print_cold_start(found: Metrics) -> None:
    """Print metrics of cold rows as a table.

    Args:
        found: Set of rows to their number and metrics.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("cold rows", "number", *COLD_SHOWN):
        table.add_column(heading, justify="left" if heading == "cold rows" else "right", no_wrap=True)
    for rows, values in found.items():
        table.add_row(rows, f"{values['rows']:,.0f}", *(f"{values[name]:.4f}" for name in COLD_SHOWN))
    Console().print(table)


def print_beyond(properties: Metrics) -> None:
    """Print what lists are like besides their accuracy, a column for each part.

    Args:
        properties: Part to property to value.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("lists of 20", *properties):
        table.add_column(heading, justify="left" if heading == "lists of 20" else "right", no_wrap=True)
    for name in dict.fromkeys(name for values in properties.values() for name in values):
        table.add_row(name, *(f"{values[name]:.4f}" if name in values else "" for values in properties.values()))
    Console().print(table)


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
    from rich.console import Console
    from rich.table import Table

    parts = [part for part in PARTS if any(part in metrics for metrics in runs.values())]
    table = Table()
    for heading in ("metric", "run", *parts):
        table.add_column(heading, justify="right" if heading in parts else "left", no_wrap=True)
    for name in (SELECT, "ndcg@20"):
        for run, metrics in runs.items():
            values = (metrics.get(part, {}).get(name) for part in parts)
            table.add_row(name, run, *("" if value is None else f"{value:.4f}" for value in values))
        table.add_section()
    Console().print(table)
