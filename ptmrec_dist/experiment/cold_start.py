"""Tables of an experiment's cold start: items with few training interactions, after every prefix of a user's sequence."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ptmrec_dist.config import ReadsRun
from ptmrec_dist.evaluation.cold_rows import ROWS
from ptmrec_dist.evaluation.metrics import COLD_SHOWN
from ptmrec_dist.evaluation.tables import Entry, Table, mean_of_seeds
from ptmrec_dist.experiment.accuracy import Wording
from ptmrec_dist.experiment.grid import groups_of
from ptmrec_dist.experiment.plan import Plan
from ptmrec_dist.files import read_json, write_atomically
from ptmrec_dist.training.cold_start import cold_start
from ptmrec_dist.training.evaluator import masking_of
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import read_record

_MEANING = {
    "all": "all rows, as in PMMRec's table VII: those that end within training were trained on",
    "held_out": "rows whose target is in validation or test",
    "new": "rows whose target has no training interaction",
}

Measured = Mapping[str, Mapping[str, float]]
"""Set of rows to metric to mean over its rows."""


def cold_tables(words: Wording, plan: Plan) -> dict[str, Table]:
    """Make a table of each set of cold rows.

    Args:
        words: Names and captions.
        plan: Plan of an experiment whose runs have all ended.

    Returns:
        Name to table; none where the settings do not ask for cold start.

    Raises:
        UserError: Interactions without times, or no cold row.
    """
    below = words.config.cold_below
    if below is None:
        return {}
    kept = words.config.out / "cold_start"
    rows = {
        row: [_measured(plan, cell.name, plan.shards[cell.split], below, kept) for cell in cells]
        for row, cells in groups_of(plan.cells)
    }
    tables = {}
    for name in ROWS:
        table = Table(_caption(words, name, below), [*words.names, "rows", *COLD_SHOWN], keys=len(words.names))
        found = {row: [one[name] for one in runs] for row, runs in rows.items() if all(name in one for one in runs)}
        means = {metric: {row: _values(runs, metric) for row, runs in found.items()} for metric in COLD_SHOWN}
        best = {metric: max(one.mean() for one in values.values()) for metric, values in means.items() if values}
        for row, runs in found.items():
            entries = [
                Entry(mean_of_seeds(values[row]), best=values[row].mean() == best[metric])
                for metric, values in means.items()
            ]
            number = f"{_values(runs, 'rows').mean():,.0f}"
            table.rows.append([*words.labels(row), Entry(number), *entries])
        if table.rows:
            tables[f"cold_start_{name}"] = table
    return tables


def _values(runs: list[Mapping[str, float]], metric: str) -> np.ndarray:
    return np.array([run[metric] for run in runs])


def _caption(words: Wording, rows: str, below: int) -> str:
    over = f"mean ± standard deviation over {words.count} {words.units}" if words.count > 1 else "one seed"
    return (
        f"Cold start, {_MEANING[rows]}: all items are ranked after every prefix that an item with fewer than {below} training "
        f"interactions follows; means over rows, {over}. Bold: the best. Not tested for significance."
    )


def _measured(plan: Plan, name: str, shards: Path, below: int, kept: Path) -> Measured:
    """Cold start of a finished run, measured once."""
    folder, path, now = plan.steps[name].folder, kept / f"{name}.json", ReadsRun(shards=shards)
    key = {"run": read_record(folder, now).fingerprint, "below": below}
    before = read_json(path, "out") if path.is_file() else {}
    if before.get("key") != key:
        run = load_run(folder, now)
        found = cold_start(run.dataset, run.recommender, run.features, below, masking_of(run.record).history)
        before = {"key": key, "measured": found}
        kept.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(before, indent=1))
    measured: Measured = before["measured"]
    return measured
