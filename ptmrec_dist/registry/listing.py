"""List of registered models (`ptmrec models`): for a terminal, for a pipe (tab-separated), or as JSON; never truncated."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from ptmrec_dist.config import ModelsConfig
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT, check_metric, metric_names
from ptmrec_dist.mlflow_store import metric_name, mlflow_errors
from ptmrec_dist.registry.loading import client_of_registry
from ptmrec_dist.registry.versions import all_models, all_versions

_PARTS = PARTS[1:]
_ANY_WIDTH = 100_000
_LINEAGE = ("recommender", "stage", "data")


def models(config: ModelsConfig) -> None:
    """Print the versions of registered models, newest first, with aliases, lineage and metrics (`ptmrec models`).

    Args:
        config: Settings.

    Raises:
        UserError: No registry, no model of that name, or an unknown metric.
    """
    metric = check_metric(config.metric or SELECT)
    client = client_of_registry(must_exist=True)
    with mlflow_errors():
        found = all_models(client)
        shown = [model for model in found if config.name in (None, model.name)]
        if config.name is not None and not shown:
            names = ", ".join(model.name for model in found) or "none: nothing is registered"
            raise UserError(f"name: got {config.name!r}, expected one of {names}")
        versions = [(version, model.aliases) for model in shown for version in all_versions(client, model.name)]
    if config.json:
        print(json.dumps([_described(version, aliases) for version, aliases in versions], indent=1))
        return
    rows = [_row(version, aliases, metric) for version, aliases in versions]
    parts = [part for part in _PARTS if any(row[f"{part} {metric}"] for row in rows)]
    hidden = {f"{part} {metric}" for part in _PARTS if part not in parts}
    _print([{name: value for name, value in row.items() if name not in hidden} for row in rows])


def _described(version: Any, aliases: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the registry records of a version, as JSON."""
    metrics = {
        part: {
            name: float(version.tags[metric_name(f"{part}.{name}")])
            for name in metric_names()
            if metric_name(f"{part}.{name}") in version.tags
        }
        for part in _PARTS
    }
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": _aliases(version, aliases),
        **{name: version.tags.get(name) for name in _LINEAGE},
        "metrics": {part: values for part, values in metrics.items() if values},
        "tags": {name: value for name, value in version.tags.items() if "/" not in name and name not in _LINEAGE},
    }


def _row(version: Any, aliases: Mapping[str, Any], metric: str) -> dict[str, str]:
    values = {part: version.tags.get(metric_name(f"{part}.{metric}")) for part in _PARTS}
    return {
        "model": version.name,
        "version": str(version.version),
        "aliases": " ".join(_aliases(version, aliases)),
        **{name: version.tags.get(name, "")[:12] for name in _LINEAGE},
        **{f"{part} {metric}": "" if value is None else f"{float(value):.4f}" for part, value in values.items()},
    }


def _aliases(version: Any, aliases: Mapping[str, Any]) -> list[str]:
    return sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))


def _print(rows: list[dict[str, str]]) -> None:
    if not sys.stdout.isatty():
        headings = list(rows[0]) if rows else ["model", "version"]
        print("\n".join("\t".join(cells) for cells in [headings, *(row.values() for row in rows)]))
        return
    from rich.console import Console
    from rich.table import Table

    # Names are the user's: they are printed as they are, never as markup.
    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False)
    for heading in rows[0] if rows else ():
        table.add_column(heading.replace(" ", "\n").replace("cold_", "cold\n"), no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    if console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:  # a narrow terminal: one value per line
        print("\n".join(f"{name:<26}{value}" for name, value in row.items() if value), end="\n\n")
