"""`ptmrec report`: the experiment's page for runs that were made by hand.

ptmrec report --runs runs/a,runs/b --out report.html          # the first one is the baseline
ptmrec report --runs 'runs/frozen-seed*,runs/tuned-seed*'     # settings over seeds
"""

import glob
import re
from pathlib import Path

import numpy as np

from ptmrec_dist.config import ReportConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.comparison import Comparison, group_name, write_comparison
from ptmrec_dist.evaluation.metrics import SHOWN
from ptmrec_dist.evaluation.outcomes import Setting, parts_of
from ptmrec_dist.evaluation.tables import Entry, Table, mean_of_seeds
from ptmrec_dist.experiment.finished import read_setting
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.training.finished_run import open_data_of
from ptmrec_dist.training.records import RunRecord, read_record


@exclusive_out
def report(config: ReportConfig) -> None:
    """Write a page about finished runs (`ptmrec report`).

    Args:
        config: Settings.

    Raises:
        UserError: No such run, one that is not finished or of other data, or two of the same name; nothing is written.
    """
    folders = _folders(config.runs)
    records = {folder: read_record(folder, config, "runs") for folder in folders}
    first = records[folders[0]]
    for folder, record in records.items():
        if record.data["fingerprint"] != first.data["fingerprint"]:
            raise UserError(
                f"runs: {folder} was made from data {record.data['fingerprint'][:12]}, but {folders[0]} from "
                f"{first.data['fingerprint'][:12]}; expected runs of one packed data set"
            )
    if config.out.is_dir():
        raise UserError(f"out: {config.out} is a folder; expected a file")
    by_setting = _by_setting(folders, records)
    settings = [read_setting(name, _group(records[same[0]]), same, now=config) for name, same in by_setting.items()]
    trained = {name: _command(records[same[0]]) for name, same in by_setting.items()}
    texts = {f"Settings of {folder.name}": (folder / "config.yaml").read_text() for folder in folders}
    dataset = open_data_of(folders[0], first)
    parts = parts_of("test", dataset.sources)
    tables = [_table(part, label, settings, trained) for part, label in parts.items()]
    page = Comparison(config.title, settings, [table for table in tables if table.rows], texts=texts)
    write_comparison(config.out, dataset, page)
    print(f"open {config.out} in a browser")


def _folders(runs: str) -> list[Path]:
    found: list[Path] = []
    for pattern in filter(None, (part.strip() for part in runs.split(","))):
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not matches:
            raise UserError(f"runs: nothing is called {pattern}")
        found += [Path(match) for match in matches]
    if not found:
        raise UserError("runs: got none, expected run folders, separated by commas")
    return list(dict.fromkeys(folder.resolve() for folder in found))


def _by_setting(folders: list[Path], records: dict[Path, RunRecord]) -> dict[str, list[Path]]:
    """Name of the setting to its runs; runs of one setting have folders side by side and the same kind of model."""
    settings: dict[str, list[Path]] = {}
    for folder in folders:
        settings.setdefault(re.sub(r"-seed\d+$", "", folder.name), []).append(folder)
    for name, same in settings.items():
        twice = len({folder.name for folder in same}) < len(same)
        if twice or len({(folder.parent, _group(records[folder]), records[folder].stage) for folder in same}) > 1:
            raise UserError(
                f"runs: {', '.join(map(str, same))} are all called {name}, but are not one setting over seeds; rename a folder"
            )
    return settings


def _group(record: RunRecord) -> str:
    modalities = "both" if len(record.modalities) > 1 else (record.modalities or ["none"])[0]
    return group_name(record.recommender, modalities)


def _command(record: RunRecord) -> str:
    """The command that made a run."""
    if record.stage2 is not None:
        return "refit"
    if record.stage == 1:
        return "stage1"
    return "joint" if record.stage1 is None else "stage2"


def _table(part: str, label: str, settings: list[Setting], trained: dict[str, str]) -> Table:
    """Means and standard deviations over seeds, the best of each metric marked."""
    having = [one for one in settings if all(part in run.metrics for run in one.runs)]
    values = {
        (one.name, metric): np.array([run.metrics[part][metric] for run in one.runs])
        for one in having
        for metric in SHOWN
    }
    best = {metric: max(values[one.name, metric].mean() for one in having) for metric in SHOWN if having}
    table = Table(
        f"Test, {label}: mean ± standard deviation over seeds, where there are several. Bold: the best. "
        "Nothing here is tested for significance, neither over users nor over seeds, and all runs are of one split.",
        ["run", *SHOWN, "recommender", "trained by", "seeds"],
    )
    for one in having:
        row = [Entry(one.name)]
        for metric in SHOWN:
            seeds = values[one.name, metric]
            row.append(Entry(mean_of_seeds(seeds), best=seeds.mean() == best[metric]))
        table.rows.append([*row, Entry(one.group), Entry(trained[one.name]), Entry(str(len(one.runs)))])
    return table
