"""`ptmrec doctor`: find what lies at each path, examine it, and print the findings."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptmrec_dist.config import DoctorConfig
from ptmrec_dist.data.manifest import FILE_NAME, Manifest
from ptmrec_dist.data.tables.formats import ENDINGS
from ptmrec_dist.doctor.catalogue import examine_tables
from ptmrec_dist.doctor.features import examine_features
from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.doctor.printing import print_report
from ptmrec_dist.doctor.shards import examine_shards
from ptmrec_dist.doctor.tables import find_interactions, find_items, tables_in
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import parse_json

if TYPE_CHECKING:
    from ptmrec_dist.doctor.encoder import LoadedEncoder  # torch takes seconds


def doctor(config: DoctorConfig) -> int:
    """Examine what lies at some paths, or this machine, and print the findings (`ptmrec doctor`).

    Nothing is written.

    Args:
        config: Settings.

    Returns:
        Exit code: 0 without findings or with notes alone, 1 with warnings, 2 with errors.
    """
    report = examine(config)
    print_report(report, config.json)
    return int(report.exit_code)


def examine(config: DoctorConfig) -> Report:
    """Examine what lies at some paths, or this machine.

    Args:
        config: Settings.

    Returns:
        Everything that was found.
    """
    report = Report()
    encoder = _load_encoder(config, report)
    if config.interactions is not None:
        examine_tables(config, config.packing(config.interactions, config.items), encoder, report)
    elif not config.paths:
        from ptmrec_dist.doctor.machine import examine_machine  # torch takes seconds

        examine_machine(report)
    kinds = [(path, kind_of(path)) for path in config.paths]
    data_sets = _fingerprints([path for path, kind in kinds if kind == "shards"])
    for path, kind in kinds:
        _examine_path(path, kind, config, encoder, data_sets, report)
    return report


def kind_of(path: Path) -> str:
    """Tell what lies at a path.

    Args:
        path: Folder.

    Returns:
        `shards`, `features`, `run`, `tables` where it is another folder, or nothing.
    """
    if any((path / name).is_file() for name in ("config.yaml", "run.json")):
        return "run"
    if (path / FILE_NAME).is_file():
        return "features" if _is_features(path) else "shards"
    if any(path.glob("shard-*.tar")):
        return "shards"
    return "tables" if path.is_dir() else ""


def _examine_path(
    path: Path,
    kind: str,
    config: DoctorConfig,
    encoder: "LoadedEncoder | None",
    data_sets: Mapping[str, Path],
    report: Report,
) -> None:
    if kind == "shards":
        examine_shards(path, config, encoder, report)
    elif kind == "features":
        examine_features(path, data_sets, report)
    elif kind == "run":
        from ptmrec_dist.doctor.runs import examine_run  # torch takes seconds

        examine_run(path, report)
    elif kind == "tables" and (interactions := find_interactions(path, config)) is not None:
        examine_tables(config, config.packing(interactions, find_items(path, config)), encoder, report)
    else:
        tables = ", ".join(table.name for table in tables_in(path)) or "no table"
        found = f"got a folder with {tables}" if path.is_dir() else "it is no folder"
        named = f"interactions.* and items.*, or tables of any name ({ENDINGS}) with the columns of --columns"
        report.add([Finding("not-recognised", str(path), f"{found}; expected one table of interactions: {named}")])


def _is_features(folder: Path) -> bool:
    try:
        return "widths" in parse_json((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return any(folder.glob("*.npy"))


def _fingerprints(folders: list[Path]) -> dict[str, Path]:
    found = {}
    for folder in folders:
        try:
            found[Manifest.read(folder).fingerprint] = folder
        except UserError:
            continue  # reported when the folder is examined
    return found


def _load_encoder(config: DoctorConfig, report: Report) -> "LoadedEncoder | None":
    if config.encoder is None:
        return None
    from ptmrec_dist.doctor.encoder import LoadedEncoder

    try:
        encoder = LoadedEncoder.load(config.encoder)
    except UserError as error:
        report.add([Finding("encoder-not-loaded", "--encoder", str(error))])
        return None
    widths = ", ".join(f"{modality} {width}" for modality, width in encoder.widths.items())
    report.facts.append(("--encoder", "widths", f"{widths}; images of {encoder.image_size} pixels"))
    return encoder
