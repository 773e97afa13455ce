"""What an experiment found: means over seeds, tests of significance, what each way of training costs.

Shape suffixes: N users with positives, S seeds.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from ptmrec_dist.config import ExperimentConfig, ReadsRun
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.comparison import Comparison, group_name, write_comparison
from ptmrec_dist.evaluation.metrics import SELECT, SHOWN, title_of
from ptmrec_dist.evaluation.outcomes import PARTS, SeedRun, Setting
from ptmrec_dist.evaluation.ranking import metrics_of
from ptmrec_dist.evaluation.significance import compare, holm
from ptmrec_dist.evaluation.tables import Entry, Table, mean_of_seeds
from ptmrec_dist.experiment.finished import read_setting
from ptmrec_dist.experiment.grid import Cell, Plan, encoder_step
from ptmrec_dist.files import read_json
from ptmrec_dist.training.contrastive import LINEAGE_FILE
from ptmrec_dist.training.run_folder import EFFICIENCY_FILE, plain_settings

LEVEL = 0.05
_NAMES = ("recommender", "modalities", "paradigm", "method")

PerUser = dict[str, dict[str, np.ndarray]]
"""Part to metric to the value of each user with positives, float64 [N]."""


@dataclass(frozen=True)
class Tested:
    """A row of the tables against its baseline, on one metric of one part."""

    row: Cell
    """The row."""
    part: str
    """Part of the data."""
    metric: str
    """Metric."""
    difference: float
    """Mean over seeds and users of the difference."""
    p: Mapping[str, float]
    """Test (`t_test_users`, `wilcoxon_users`, `t_test_seeds`, `wilcoxon_seeds`) to its p, not corrected."""


def write_results(config: ExperimentConfig, plan: Plan) -> list[Path]:
    """Write the tables and the page of an experiment whose runs have all ended, and print the main table.

    Args:
        config: Settings.
        plan: Cells and steps.

    Returns:
        The files written.
    """
    folders: dict[Cell, dict[int, Path]] = defaultdict(dict)
    for cell in plan.cells:
        folders[cell.row][cell.seed] = plan.steps[cell.name].folder
    now = ReadsRun(shards=config.shards)
    settings = {
        row: read_setting(_name(row), _group(row), list(seeds.values()), now=now, kept=config.out / "ranks")
        for row, seeds in folders.items()
    }
    rows = {
        row: {seed: _per_user(run) for seed, run in zip(folders[row], setting.runs, strict=True)}
        for row, setting in settings.items()
    }
    folder = config.out / "tables"
    folder.mkdir(exist_ok=True)
    tables: dict[str, Table] = {}
    for part in [part for part in PARTS if any(part in found for seeds in rows.values() for found in seeds.values())]:
        of_part = {row: seeds for row, seeds in rows.items() if all(part in found for found in seeds.values())}
        comparisons = _comparisons(config, of_part, part)
        tables[f"accuracy_{part}"] = _accuracy(config, of_part, part, comparisons)
        tables[f"significance_{part}"] = _significance(config, comparisons, part)
        print(f"\n{tables[f'accuracy_{part}'].markdown()}")
    tables["costs"] = _costs(config, plan)
    for name, table in tables.items():
        table.write(folder, name)
    page = config.out / "report.html"
    write_comparison(page, Dataset(config.shards), _page(config, list(settings.values()), tables))
    print(f"tables in {folder}, figures and tables in {page}")
    return [*sorted(folder.iterdir()), page]


def _page(config: ExperimentConfig, settings: list[Setting], tables: dict[str, Table]) -> Comparison:
    return Comparison(
        title=f"Experiment {config.out.name}",
        settings=settings,
        tables=[table for name, table in tables.items() if not name.startswith("significance")],
        details=[table for name, table in tables.items() if name.startswith("significance") and table.rows],
        texts={"Settings of the experiment": yaml.safe_dump(plain_settings(config), sort_keys=False)},
    )


def _name(row: Cell) -> str:
    """What a row is called within its group."""
    words = row.paradigm.replace("_", " ")
    return words if row.paradigm == "frozen" else f"{words}, {row.method}"


def _group(row: Cell) -> str:
    return group_name(row.recommender, row.modalities)


def _per_user(run: SeedRun) -> PerUser:
    return {part: metrics_of(ranked).values for part, ranked in run.ranked.items()}


def _comparisons(config: ExperimentConfig, rows: Mapping[Cell, dict[int, PerUser]], part: str) -> list[Tested]:
    found = []
    for row, seeds in rows.items():
        same_method = replace(row, paradigm=config.baseline)
        base = same_method if same_method in rows else replace(same_method, method="none")
        if row.paradigm == config.baseline or base not in rows:
            continue
        for metric in SHOWN:
            ours_SN, theirs_SN = (
                np.stack([rows[one][seed][part][metric] for seed in sorted(seeds)]) for one in (row, base)
            )
            users = compare(ours_SN.mean(axis=0), theirs_SN.mean(axis=0))
            by_seed = compare(ours_SN.mean(axis=1), theirs_SN.mean(axis=1))
            p = {
                "t_test_users": users.t_test,
                "wilcoxon_users": users.wilcoxon,
                "t_test_seeds": by_seed.t_test,
                "wilcoxon_seeds": by_seed.wilcoxon,
            }
            found.append(Tested(row, part, metric, users.difference, p))
    return found


def _corrected(comparisons: list[Tested], test: str) -> dict[tuple[Cell, str], float]:
    """P after correction over all rows and metrics of the part."""
    values = holm([comparison.p[test] for comparison in comparisons])
    return {(one.row, one.metric): value for one, value in zip(comparisons, values, strict=True)}


def _accuracy(
    config: ExperimentConfig, rows: Mapping[Cell, dict[int, PerUser]], part: str, comparisons: list[Tested]
) -> Table:
    """Means over seeds with both kinds of tests: marks at every value, and p of the selecting metric in full."""
    users, seeds = (_corrected(comparisons, test) for test in ("t_test_users", "t_test_seeds"))
    means = {
        row: {metric: np.array([found[part][metric].mean() for found in seeds.values()]) for metric in SHOWN}
        for row, seeds in rows.items()
    }
    best = {metric: max(float(values[metric].mean()) for values in means.values()) for metric in SHOWN}
    selecting = title_of(SELECT)
    table = Table(
        _caption(config, part),
        [*_NAMES, *SHOWN, f"p over users, {selecting}", f"p over seeds, {selecting}"],
        keys=len(_NAMES),
    )
    for row, values in means.items():
        entries = [
            Entry(
                mean_of_seeds(values[metric]),
                best=float(values[metric].mean()) == best[metric],
                marks=_mark(users, row, metric, "*") + _mark(seeds, row, metric, "†"),
            )
            for metric in SHOWN
        ]
        tests = [Entry(_p(found.get((row, SELECT), float("nan")))) for found in (users, seeds)]
        table.rows.append([*_labels(row), *entries, *tests])
    return table


def _caption(config: ExperimentConfig, part: str) -> str:
    count = len(config.seeds)
    over = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    seeds = (
        f"the same over the {count} seeds (means over users)"
        if count > 1
        else "the same over seeds: not testable with one"
    )
    return (
        f"Test, {PARTS[part]}: {over}. Bold: the best. *: differs from {config.baseline} over users (paired t-test of each "
        f"user's mean over seeds, p < {LEVEL}), which says nothing about other seeds. †: {seeds}. Both corrected by "
        "Holm-Bonferroni over the table. One split of the data: no test over splits."
    )


def _mark(corrected: Mapping[tuple[Cell, str], float], row: Cell, metric: str, sign: str) -> str:
    return sign if corrected.get((row, metric), 1.0) < LEVEL else ""


def _p(value: float) -> str:
    """Write p; nothing where there is none to test, as over one seed or for the baseline."""
    return "" if np.isnan(value) else f"{value:.3g}"


def _significance(config: ExperimentConfig, comparisons: list[Tested], part: str) -> Table:
    tests = ("t_test_users", "wilcoxon_users", "t_test_seeds", "wilcoxon_seeds")
    corrected = {test: _corrected(comparisons, test) for test in tests}
    table = Table(
        f"Test, {PARTS[part]}, all metrics: difference from {config.baseline}, and p of paired tests over users (means over "
        f"seeds) and over seeds (means over users), each corrected by Holm-Bonferroni over the table. *: p < {LEVEL}.",
        [*_NAMES, "metric", "difference", *tests],
        keys=len(_NAMES) + 1,
    )
    for one in comparisons:
        values = [corrected[test][one.row, one.metric] for test in tests]
        entries = [Entry(_p(value), marks="*" if value < LEVEL else "") for value in values]
        table.rows.append([*_labels(one.row), Entry(one.metric), Entry(f"{one.difference:+.4f}"), *entries])
    return table


def _costs(config: ExperimentConfig, plan: Plan) -> Table:
    """What each way of training costs, a row each."""
    table = Table(
        "What is trained, and what an epoch costs (means over seeds) of the step that trains the encoder; of stage 1 in the "
        "paradigm frozen. Items a second are those through the encoder. Stage 1 before two_stage and after contrastive costs "
        "what it costs in frozen.",
        [
            *_NAMES,
            "trained in the encoder",
            "trained in all",
            "seconds an epoch",
            "items a second",
            "peak memory in MB",
        ],
        keys=len(_NAMES),
    )
    rows: dict[Cell, list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        rows[cell.row].append(cell)
    for row, cells in rows.items():
        counts = _parameters(plan, cells[0])
        files = [_encoder_folder(plan, cell) / EFFICIENCY_FILE for cell in cells]
        costs = [read_json(path, "out") for path in files if path.is_file()]
        shown = [f"{counts.get('encoder', 0):,}", f"{counts['trainable']:,}"]
        for name in ("seconds_per_epoch", "items_per_second", "peak_memory_mb"):
            values = [cost[name] for cost in costs if name in cost]
            shown.append(f"{np.mean(values):,.1f}" if values else "")
        table.rows.append([*_labels(row), *map(Entry, shown)])
    return table


def _encoder_folder(plan: Plan, cell: Cell) -> Path:
    """Folder of the step that trains the cell's encoder, or of its only one."""
    name = encoder_step(cell.method, cell.seed) if cell.paradigm == "contrastive" else cell.name
    return plan.steps[name].folder


def _parameters(plan: Plan, cell: Cell) -> dict[str, int]:
    counts: dict[str, int] = read_json(plan.steps[cell.name].folder / "run.json", "out")["parameters"]
    if cell.paradigm != "contrastive":
        return counts
    lineage = read_json(_encoder_folder(plan, cell) / LINEAGE_FILE, "out")
    before = lineage["parameters"]["encoder"]
    return counts | {"encoder": before, "trainable": before + counts["trainable"]}


def _labels(row: Cell) -> list[Entry]:
    return [Entry(getattr(row, name)) for name in _NAMES]
