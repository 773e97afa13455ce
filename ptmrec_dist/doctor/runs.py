"""Checks of a run: whether it is finished, and whether all that it was made from is still there and the same."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ptmrec_dist.data.feature_store import read_feature_manifest
from ptmrec_dist.data.manifest import Manifest
from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.encoders.sources.loading import load_backbone_of
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.files import read_yaml
from ptmrec_dist.lineage import read_inputs
from ptmrec_dist.training.finished_run import load_run, open_data_of, open_features_of
from ptmrec_dist.training.records import RunRecord, read_record, require_encoder


def examine_run(folder: Path, report: Report) -> None:
    """Examine a run folder.

    Args:
        folder: Run folder, finished or not.
        report: What was found is added.
    """
    where = str(folder)
    if not (folder / "metrics.json").is_file():
        report.add([Finding("unfinished-run", where, "it has no metrics.json, which is written last")])
        report.add(_inputs_of_unfinished(folder, where))
        return
    try:
        record = read_record(folder)
    except UserError as error:
        report.add([Finding("damaged-run", where, str(error))])
        return
    report.facts.append((where, "run", f"stage {record.stage}, {record.recommender}, {record.fingerprint[:12]}"))
    inputs = list(_inputs_of(folder, record, where))
    report.add(inputs)
    if not inputs:
        report.add(_try(lambda: load_run(folder), "damaged-run", where))


def _inputs_of(folder: Path, record: RunRecord, where: str) -> Iterator[Finding]:
    data = list(_try_input(lambda: open_data_of(folder, record), record.data["path"], where))
    yield from data
    if record.features is not None and not data:
        dataset = open_data_of(folder, record)
        yield from _try_input(lambda: open_features_of(folder, record, dataset), record.features["path"], where)
    if record.encoder is not None:
        missing = list(_try(lambda: require_encoder(record, folder), "missing-input", where))
        yield from missing or _try(lambda: load_backbone_of(record.encoder or {}), "changed-input", where)
    for name, made in (("stage1", record.stage1), ("run", record.stage2)):
        if made is not None and Path(made["path"]).exists():  # its weights are kept by the run itself
            yield from _changed_run(name, made, where)


def _changed_run(name: str, made: dict[str, str], where: str) -> Iterator[Finding]:
    try:
        found = read_record(Path(made["path"])).fingerprint
    except UserError as error:
        yield Finding("changed-input", where, str(error))
        return
    if found != made["fingerprint"]:
        yield Finding(
            "changed-input", where, f"{name}: {made['path']} is {found[:12]}, expected {made['fingerprint'][:12]}"
        )


def _inputs_of_unfinished(folder: Path, where: str) -> Iterator[Finding]:
    """Compare what was recorded when the run began with what its settings name now."""
    recorded = read_inputs(folder) or {}
    try:
        settings = read_yaml(folder / "config.yaml", "run")
    except UserError as error:
        yield Finding("damaged-run", where, str(error))
        return
    fingerprint_of: dict[str, Callable[[Path], str]] = {
        "shards": lambda path: Manifest.read(path).fingerprint,
        "features": lambda path: read_feature_manifest(path).fingerprint,
        "stage1": lambda path: read_record(path).fingerprint,
        "run": lambda path: read_record(path).fingerprint,
    }
    for name, expected in recorded.items():
        path = settings.get(name)
        if name not in fingerprint_of or not isinstance(path, str):
            continue
        if not Path(path).exists():
            yield Finding("missing-input", where, f"{name}: no files at {path}")
            continue
        try:
            found = fingerprint_of[name](Path(path))
        except UserError as error:
            yield Finding("changed-input", where, str(error))
            continue
        if found != expected:
            yield Finding("changed-input", where, f"{name}: {path} is {found[:12]}, expected {expected[:12]}")


def _try_input(read: Callable[[], object], path: str, where: str) -> Iterator[Finding]:
    return _try(read, "changed-input" if Path(path).exists() else "missing-input", where)


def _try(read: Callable[[], object], kind: str, where: str) -> Iterator[Finding]:
    try:
        read()
    except (UserError, Fault) as error:
        yield Finding(kind, where, str(error))
