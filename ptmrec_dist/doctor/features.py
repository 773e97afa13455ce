"""Checks of a features folder: its arrays, their rows, and the data set that they belong to."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ptmrec_dist.data.feature_store import FeatureStore, open_features, read_feature_manifest
from ptmrec_dist.data.npy import open_npy
from ptmrec_dist.doctor.findings import Finding, Report, note_if_rare
from ptmrec_dist.errors import UserError

_ROWS = 8192
"""Rows that are read at once from a memory-mapped array."""


def examine_features(folder: Path, data_sets: Mapping[str, Path], report: Report) -> None:
    """Examine a features folder.

    Args:
        folder: Features folder.
        data_sets: Fingerprint to folder of the packed data sets that are examined with it.
        report: What was found is added.
    """
    where = str(folder)
    try:
        manifest = read_feature_manifest(folder)
        rows = open_npy(folder / f"{next(iter(manifest.widths))}.npy").shape[0]
        store = open_features(folder, manifest.data, rows)
    except (UserError, ValueError, IndexError, StopIteration) as error:
        report.add([Finding("damaged-features", where, str(error) or "its manifest lists no arrays")])
        return
    widths = ", ".join(f"{modality} {width}" for modality, width in manifest.widths.items())
    report.facts.append((where, "features", f"{rows:,} items, {widths}, of data {manifest.data[:12]}"))
    if data_sets and manifest.data not in data_sets:
        shards = " and ".join(f"{path} ({fingerprint[:12]})" for fingerprint, path in data_sets.items())
        found = f"they were made from data {manifest.data[:12]}, but the shards are {shards}"
        report.add([Finding("features-of-other-data", where, found)])
    report.add(_unusable(store, where))
    if manifest.cut_texts:
        found = f"{manifest.cut_texts:,} of {rows:,} texts were longer than the encoder reads"
        report.add([Finding("long-texts", where, found, severity=note_if_rare(manifest.cut_texts, rows))])


def _unusable(store: FeatureStore, where: str) -> Iterator[Finding]:
    for modality, table_ID in store.tables.items():
        bad = zero = 0
        constant = len(table_ID) > 1
        for start in range(0, len(table_ID), _ROWS):
            rows_BD = table_ID[start : start + _ROWS]
            bad += int((~np.isfinite(rows_BD)).any(axis=1).sum())
            zero += int((rows_BD == 0).all(axis=1).sum())
            constant = constant and bool((rows_BD == table_ID[0]).all())
        if constant:
            yield Finding("unusable-features", where, f"{modality}: all {len(table_ID):,} rows are equal")
        elif bad or zero:
            found = f"{modality}: {bad:,} of {len(table_ID):,} rows are not finite, {zero:,} are all zero"
            yield Finding("unusable-features", where, found)
