"""Finished runs, read for the page that compares them."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ptmrec_dist.config import ReadsRun
from ptmrec_dist.evaluation.metrics import CUTOFFS, read_metrics
from ptmrec_dist.evaluation.outcomes import SeedRun, Setting
from ptmrec_dist.evaluation.ranking import Ranked
from ptmrec_dist.files import read_json_lines, staged
from ptmrec_dist.lineage import read_inputs, write_inputs
from ptmrec_dist.training.evaluator import Evaluator, masking_of
from ptmrec_dist.training.finished_run import load_run, open_data_of, open_features_of
from ptmrec_dist.training.records import read_record


def read_setting(
    name: str, group: str, folders: Sequence[Path], now: ReadsRun | None = None, kept: Path | None = None
) -> Setting:
    """Read the runs of one setting on one packed data set.

    Args:
        name: What to call it.
        group: Name of the settings that it is plotted with.
        folders: Run folders, one per seed.
        now: Present paths of their inputs; by default found relative to the run, or else at their original paths.
        kept: Folder in which the ranks of positives are cached; None caches nothing.

    Returns:
        The setting.

    Raises:
        UserError: No finished run, or data or features other than those it was made from.
    """
    return Setting(name, group, tuple(read_seed_run(folder, now, kept) for folder in folders))


def read_seed_run(folder: Path, now: ReadsRun | None = None, kept: Path | None = None, phase: str = "test") -> SeedRun:
    """Read a finished run.

    Args:
        folder: Run folder.
        now: Present paths of its inputs; by default found relative to the run, or else at their original paths.
        kept: Folder in which the ranks of positives are cached; None caches nothing.
        phase: Phase whose positives are ranked: `test` or `validation`.

    Returns:
        What it left behind.

    Raises:
        UserError: No finished run, or data or features other than those it was made from.
    """
    record = read_record(folder, now)
    dataset = open_data_of(folder, record)
    store = open_features_of(folder, record, dataset)
    history = folder / "history.jsonl"
    return SeedRun(
        stage=record.stage,
        metrics=read_metrics(folder),
        history=read_json_lines(history, "run") if history.is_file() else [],
        kept_epoch=record.kept_epoch,
        ranked=_ranked(folder, now, record.fingerprint, kept and kept / folder.name, phase),
        features={} if store is None else {modality: store.tables[modality] for modality in record.modalities},
        features_key="" if store is None else store.manifest.fingerprint,
        data=dataset.fingerprint,
    )


def _ranked(folder: Path, now: ReadsRun | None, fingerprint: str, kept: Path | None, phase: str) -> dict[str, Ranked]:
    """Ranks of the phase's positives by part; cached under the run's fingerprint, which covers its data, and the cut-off."""
    key = {"run": fingerprint, "cutoff": str(max(CUTOFFS))}
    if kept is None or not (kept.is_dir() and read_inputs(kept) == key):
        run = load_run(folder, now)
        evaluate = Evaluator(run.dataset, phase, masking_of(run.record))
        found = evaluate.ranked(run.recommender, run.features)
        if kept is None:
            return found
        with staged(kept) as fresh:
            write_inputs(fresh, key)
            for part, ranked in found.items():
                columns = {"user": ranked.users, "item": ranked.items, "rank": ranked.ranks}
                pl.DataFrame(columns).write_parquet(fresh / f"{part}.parquet")
    tables = {path.stem: pl.read_parquet(path) for path in sorted(kept.glob("*.parquet"))}
    return {
        part: Ranked(*(table[name].to_numpy() for name in ("user", "item", "rank"))) for part, table in tables.items()
    }
