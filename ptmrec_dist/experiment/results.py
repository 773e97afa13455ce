"""What an experiment found: means over seeds, tests of significance, what each way of training costs.

Shape suffixes: N users with positives, S seeds.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ptmrec_dist.config import ExperimentConfig
from ptmrec_dist.evaluation.significance import compare, holm
from ptmrec_dist.evaluation.tables import Entry, Table
from ptmrec_dist.experiment.grid import Cell, Plan, Step, encoder_step
from ptmrec_dist.training.contrastive import LINEAGE_FILE
from ptmrec_dist.training.evaluate import Evaluator
from ptmrec_dist.training.loaded import load_run
from ptmrec_dist.training.runs import EFFICIENCY_FILE

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
PARTS = {"test": "warm items", "cold_test": "cold items"}
LEVEL = 0.05
_NAMES = ("recommender", "modalities", "paradigm", "method")

PerUser = dict[str, pl.DataFrame]
"""Part to a table with `user` and a column for each metric."""


@dataclass(frozen=True)
class Comparison:
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
    """Write the tables of an experiment whose runs have all ended, and print the main one.

    Args:
        config: Settings.
        plan: Cells and steps.

    Returns:
        The files written.
    """
    rows: dict[Cell, dict[int, PerUser]] = defaultdict(dict)
    for cell in plan.cells:
        rows[cell.row][cell.seed] = _per_user(config.out / "per_user" / cell.name, plan.steps[cell.name].folder)
    tables = config.out / "tables"
    tables.mkdir(exist_ok=True)
    for part in [part for part in PARTS if any(part in found for seeds in rows.values() for found in seeds.values())]:
        of_part = {row: seeds for row, seeds in rows.items() if all(part in found for found in seeds.values())}
        comparisons = _comparisons(config, of_part, part)
        accuracy = _accuracy(config, of_part, part, comparisons)
        accuracy.write(tables, f"accuracy_{part}")
        _significance(config, comparisons, part).write(tables, f"significance_{part}")
        print(f"\n{accuracy.markdown()}")
    _costs(config, plan).write(tables, "costs")
    written = sorted(tables.iterdir())
    print(f"tables in {tables}")
    return written


def _per_user(folder: Path, run: Path) -> PerUser:
    """Test metrics of each user, kept so that they are computed once."""
    if not folder.is_dir():
        loaded = load_run(run)
        found = Evaluator(loaded.dataset, "test", loaded.record.mask_validation_at_test).per_user(
            loaded.recommender, loaded.features
        )
        fresh = folder.with_name(f".{folder.name}.new")
        fresh.mkdir(parents=True, exist_ok=True)
        for part, metrics in found.items():
            pl.DataFrame({"user": metrics.users, **metrics.values}).write_parquet(fresh / f"{part}.parquet")
        fresh.rename(folder)
    return {path.stem: pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def _comparisons(config: ExperimentConfig, rows: Mapping[Cell, dict[int, PerUser]], part: str) -> list[Comparison]:
    found = []
    for row, seeds in rows.items():
        same_method = replace(row, paradigm=config.baseline)
        base = same_method if same_method in rows else replace(same_method, method="none")
        if row.paradigm == config.baseline or base not in rows:
            continue
        for metric in METRICS:
            ours_SN, theirs_SN = (
                np.stack([rows[one][seed][part][metric].to_numpy() for seed in sorted(seeds)]) for one in (row, base)
            )
            users = compare(ours_SN.mean(axis=0), theirs_SN.mean(axis=0))
            by_seed = compare(ours_SN.mean(axis=1), theirs_SN.mean(axis=1))
            p = {
                "t_test_users": users.t_test,
                "wilcoxon_users": users.wilcoxon,
                "t_test_seeds": by_seed.t_test,
                "wilcoxon_seeds": by_seed.wilcoxon,
            }
            found.append(Comparison(row, part, metric, users.difference, p))
    return found


def _corrected(comparisons: list[Comparison], test: str) -> dict[tuple[Cell, str], float]:
    """P after correction over all rows and metrics of the part."""
    values = holm([comparison.p[test] for comparison in comparisons])
    return {(one.row, one.metric): value for one, value in zip(comparisons, values, strict=True)}


def _accuracy(
    config: ExperimentConfig, rows: Mapping[Cell, dict[int, PerUser]], part: str, comparisons: list[Comparison]
) -> Table:
    corrected = _corrected(comparisons, "t_test_users")
    means = {
        row: {
            metric: np.array([found[part][metric].to_numpy().mean() for found in seeds.values()]) for metric in METRICS
        }
        for row, seeds in rows.items()
    }
    best = {metric: max(float(values[metric].mean()) for values in means.values()) for metric in METRICS}
    table = Table(
        f"Test, {PARTS[part]}: mean ± standard deviation over {len(config.seeds)} seeds. Bold: the best. *: differs from "
        f"{config.baseline} (paired t-test over users, means over seeds, Holm-Bonferroni, p < {LEVEL}).",
        [*_NAMES, *METRICS],
    )
    for row, values in means.items():
        entries = [
            Entry(
                f"{values[metric].mean():.4f} ± {values[metric].std(ddof=1) if len(values[metric]) > 1 else 0:.4f}",
                best=float(values[metric].mean()) == best[metric],
                starred=corrected.get((row, metric), 1.0) < LEVEL,
            )
            for metric in METRICS
        ]
        table.rows.append([*_labels(row), *entries])
    return table


def _significance(config: ExperimentConfig, comparisons: list[Comparison], part: str) -> Table:
    tests = ("t_test_users", "wilcoxon_users", "t_test_seeds", "wilcoxon_seeds")
    corrected = {test: _corrected(comparisons, test) for test in tests}
    table = Table(
        f"Test, {PARTS[part]}: difference from {config.baseline}, and p of paired tests over users (means over seeds) and "
        "over seeds (means over users), each corrected by Holm-Bonferroni over the table.",
        [*_NAMES, "metric", "difference", *tests],
    )
    for one in comparisons:
        values = [corrected[test][one.row, one.metric] for test in tests]
        entries = [Entry(f"{value:.2g}", starred=value < LEVEL) for value in values]
        table.rows.append([*_labels(one.row), Entry(one.metric), Entry(f"{one.difference:+.4f}"), *entries])
    return table


def _costs(config: ExperimentConfig, plan: Plan) -> Table:
    """What each way of training costs, a row each."""
    table = Table(
        "What is trained, and what an epoch costs (means over seeds); items a second are those through the encoder. In the "
        "paradigm contrastive the encoder is trained before the recommender, whose epochs these are.",
        [
            *_NAMES,
            "trained in the encoder",
            "trained in all",
            "seconds an epoch",
            "items a second",
            "peak memory in MB",
        ],
    )
    rows: dict[Cell, list[Step]] = defaultdict(list)
    for cell in plan.cells:
        rows[cell.row].append(plan.steps[cell.name])
    for row, steps in rows.items():
        counts = json.loads((steps[0].folder / "run.json").read_text())["parameters"]
        if row.paradigm == "contrastive":
            tuned = plan.steps[encoder_step(row.method, min(config.seeds))].folder / LINEAGE_FILE
            before = json.loads(tuned.read_text())["parameters"]["encoder"]
            counts = counts | {"encoder": before, "trainable": before + counts["trainable"]}
        costs = [
            json.loads((step.folder / EFFICIENCY_FILE).read_text())
            for step in steps
            if (step.folder / EFFICIENCY_FILE).is_file()
        ]
        shown = [f"{counts.get('encoder', 0):,}", f"{counts['trainable']:,}"]
        for name in ("seconds_per_epoch", "items_per_second", "peak_memory_mb"):
            values = [cost[name] for cost in costs if name in cost]
            shown.append(f"{np.mean(values):,.1f}" if values else "")
        table.rows.append([*_labels(row), *map(Entry, shown)])
    return table


def _labels(row: Cell) -> list[Entry]:
    return [Entry(getattr(row, name)) for name in _NAMES]
