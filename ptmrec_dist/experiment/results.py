"""What an experiment found: its tables, in three formats, and its page."""

from pathlib import Path

import numpy as np
import yaml

from ptmrec_dist.config import ExperimentConfig, ReadsRun, plain_settings
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.comparison import Comparison, group_name, write_comparison
from ptmrec_dist.evaluation.outcomes import Setting, parts_of
from ptmrec_dist.evaluation.tables import Table
from ptmrec_dist.experiment.accuracy import Wording, accuracy_table, significance_table
from ptmrec_dist.experiment.cold_start import cold_tables
from ptmrec_dist.experiment.comparisons import Row, compare_rows, per_user
from ptmrec_dist.experiment.costs import cost_table
from ptmrec_dist.experiment.finished import read_seed_run
from ptmrec_dist.experiment.grid import Cell, groups_of
from ptmrec_dist.experiment.plan import Plan


def write_results(config: ExperimentConfig, plan: Plan) -> list[Path]:
    """Write the tables and the page of an experiment whose runs have all ended, and print the main tables.

    Args:
        config: Settings.
        plan: Cells and steps.

    Returns:
        The files written.
    """
    datasets = {split: Dataset(folder) for split, folder in plan.shards.items()}
    user_ids = {split: np.array(dataset.user_ids) for split, dataset in datasets.items()}
    kept = config.out / ("ranks" if config.phase == "test" else f"ranks-{config.phase}")
    settings: list[Setting] = []
    rows: dict[Cell, Row] = {}
    for row, cells in groups_of(plan.cells):
        runs = {
            cell: read_seed_run(
                plan.steps[cell.name].folder, ReadsRun(shards=plan.shards[cell.split]), kept, config.phase
            )
            for cell in cells
        }
        settings.append(Setting(_name(row), _group(row), tuple(runs.values())))
        rows[row] = {cell: per_user(run, user_ids[cell.split]) for cell, run in runs.items()}
    results = config.results or config.out
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(datasets.values()))
    tables = _tables(Wording(config, parts_of(config.phase, first.sources)), plan, rows)
    for name, table in tables.items():
        table.write(folder, name)
        if name.startswith("accuracy"):
            print(f"\n{table.markdown()}")
    page = results / "report.html"
    write_comparison(page, first, _page(config, settings, tables))
    print(f"tables in {folder}, figures and tables in {page}")
    return [*sorted(folder.iterdir()), page]


def _tables(words: Wording, plan: Plan, rows: dict[Cell, Row]) -> dict[str, Table]:
    tables = {}
    for part in words.parts:
        of_part = {row: runs for row, runs in rows.items() if all(part in found for found in runs.values())}
        if of_part:
            comparisons = compare_rows(of_part, words.config, part)
            tables[f"accuracy_{part}"] = accuracy_table(words, of_part, part, comparisons)
            tables[f"significance_{part}"] = significance_table(words, comparisons, part)
    tables |= cold_tables(words, plan)
    tables["costs"] = cost_table(words, plan)
    return tables


def _page(config: ExperimentConfig, settings: list[Setting], tables: dict[str, Table]) -> Comparison:
    return Comparison(
        title=f"Experiment {config.out.name}",
        settings=settings,
        tables=[table for name, table in tables.items() if not name.startswith("significance")],
        details=[table for name, table in tables.items() if name.startswith("significance") and table.rows],
        texts={"Settings of the experiment": yaml.safe_dump(plain_settings(config), sort_keys=False)},
        phase=config.phase,
        splits=len(config.splits),
    )


def _name(row: Cell) -> str:
    """What a row is called within its group."""
    words = row.paradigm.replace("_", " ")
    return words if row.paradigm == "frozen" else f"{words}, {row.method}"


def _group(row: Cell) -> str:
    group = group_name(row.recommender, row.modalities)
    return group if row.encoder in ("", "none") else f"{row.encoder}: {group}"
