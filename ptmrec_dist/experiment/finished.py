"""Finished runs, read for the page that compares them."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.comparison import SeedRun, Setting
from ptmrec_dist.evaluation.ranking import Ranked
from ptmrec_dist.training.evaluate import Evaluator
from ptmrec_dist.training.loaded import load_run, open_features_of
from ptmrec_dist.training.runs import read_record


def read_setting(name: str, group: str, folders: Sequence[Path], kept: Path | None = None) -> Setting:
    """Read the runs of one setting.

    Args:
        name: What to call it.
        group: The settings that it is drawn beside.
        folders: Run folders, one a seed.
        kept: Folder where the ranks of test positives are kept, so that they are computed once; None keeps nothing.

    Returns:
        The setting.

    Raises:
        UserError: No finished run, or data or features that are not those it was made from.
    """
    return Setting(name, group, tuple(_read(folder, kept and kept / folder.name) for folder in folders))


def _read(folder: Path, kept: Path | None) -> SeedRun:
    record = read_record(folder)
    dataset = Dataset(Path(record.data["path"]))
    store = open_features_of(folder, record, dataset)
    lines = (folder / "history.jsonl").read_text().splitlines() if (folder / "history.jsonl").is_file() else []
    return SeedRun(
        stage=record.stage,
        metrics=json.loads((folder / "metrics.json").read_text()),
        history=[json.loads(line) for line in lines],
        kept_epoch=record.kept_epoch,
        ranked=_ranked(folder, kept),
        features={} if store is None else {modality: store.tables[modality] for modality in record.modalities},
        features_key="" if store is None else store.manifest.fingerprint,
    )


def _ranked(folder: Path, kept: Path | None) -> dict[str, Ranked]:
    """Ranks of the test positives by part."""
    if kept is None or not kept.is_dir():
        run = load_run(folder)
        evaluate = Evaluator(run.dataset, "test", run.record.mask_validation_at_test)
        found = evaluate.ranked(run.recommender, run.features)
        if kept is None:
            return found
        fresh = kept.with_name(f".{kept.name}.new")
        fresh.mkdir(parents=True, exist_ok=True)
        for part, ranked in found.items():
            columns = {"user": ranked.users, "item": ranked.items, "rank": ranked.ranks}
            pl.DataFrame(columns).write_parquet(fresh / f"{part}.parquet")
        fresh.rename(kept)
    tables = {path.stem: pl.read_parquet(path) for path in sorted(kept.glob("*.parquet"))}
    return {
        part: Ranked(*(table[name].to_numpy() for name in ("user", "item", "rank"))) for part, table in tables.items()
    }
