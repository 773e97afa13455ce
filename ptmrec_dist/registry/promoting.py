"""Promotion of a version to champion through the gate, and rollback to the previous champion."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl

from ptmrec_dist.config import PromoteConfig, RollbackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.manifest import Manifest
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.beyond import LIST_PROPERTIES
from ptmrec_dist.evaluation.metrics import SELECT, check_metric
from ptmrec_dist.files import sha256
from ptmrec_dist.mlflow_store import mlflow_errors
from ptmrec_dist.registry.gate import NotPromoted, judge, judge_lists
from ptmrec_dist.registry.held_out import PHASE, compare_on
from ptmrec_dist.registry.loading import absent_files, client_of_registry, verified_files
from ptmrec_dist.registry.versions import (
    CANDIDATE,
    CHAMPION,
    HISTORY_TAG,
    aliases_of,
    all_versions,
    champions_of,
    find_version,
    set_champion,
)
from ptmrec_dist.serving.tables import PER_USER_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVED = "artifacts/model"
"""Folder of the served model in a version's files."""
PER_USER_TAG = "per_user_digest"
"""Tag of a version: digest of the file with each user's metrics."""
LIST_TAG = "lists_"
"""Begins the tags of a version that say what its lists are like besides their accuracy, on validation."""
GATE_TAG, ROLLBACK_TAG = "promoted", "rolled_back_to"
"""Tags of a version: the gate's finding, and the version that it was rolled back to."""


def promote(config: PromoteConfig) -> None:
    """Make a version the champion if it passes the gate (`ptmrec promote`).

    Args:
        config: Settings.

    Raises:
        UserError: No such version or data set, or one trained on other data than the champion.
        NotPromoted: The gate refused it.
    """
    check_metric(config.metric or SELECT)
    if config.on is not None:
        Manifest.read(config.on, option="on")  # also where there is no champion to compare with
    client = client_of_registry(must_exist=True)
    with mlflow_errors():
        aliases = aliases_of(client, config.name)
        ours = find_version(client, config.name, _chosen(config, aliases))
        finding = "no champion to beat"
        if str(ours.version) == aliases.get(CHAMPION):
            # A promotion that was killed: only the candidate's alias is left.
            finding = ours.tags.get(GATE_TAG, finding)
        else:
            theirs = find_version(client, config.name, aliases[CHAMPION]) if CHAMPION in aliases else None
            _check_lists(config, ours, theirs)
            if theirs is not None:
                finding = _pass_gate(client, config, ours, theirs)
        client.set_model_version_tag(config.name, ours.version, GATE_TAG, finding)
        if ROLLBACK_TAG in ours.tags:
            client.delete_model_version_tag(config.name, ours.version, ROLLBACK_TAG)
        set_champion(client, config.name, str(ours.version))
        if aliases.get(CANDIDATE) == str(ours.version):
            client.delete_registered_model_alias(config.name, CANDIDATE)
    print(f"promoted version {ours.version} of {config.name} to models:/{config.name}@{CHAMPION}: {finding}")


def rollback(config: RollbackConfig) -> None:
    """Make the previous champion the champion again (`ptmrec rollback`).

    Args:
        config: Settings.

    Raises:
        UserError: There was no champion before.
    """
    client = client_of_registry(must_exist=True)
    with mlflow_errors():
        present = aliases_of(client, config.name).get(CHAMPION)
        kept = {str(version.version) for version in all_versions(client, config.name)}
        before = [version for version in champions_of(client, config.name) if version != present and version in kept]
        if not before:
            raise UserError(
                f"name: {config.name} has no champion before {present or 'any'}; expected one to go back to"
            )
        if present is not None:
            client.set_model_version_tag(config.name, present, ROLLBACK_TAG, before[-1])
        client.set_registered_model_alias(config.name, CHAMPION, before[-1])
        client.set_registered_model_tag(config.name, HISTORY_TAG, json.dumps(before))
    print(
        f"rolled back {config.name}: models:/{config.name}@{CHAMPION} is version {before[-1]} again, was "
        f"{present or 'deleted'}; `ptmrec promote --version` can promote any version again"
    )


def _chosen(config: PromoteConfig, aliases: dict[str, str]) -> str:
    """Number of the version to promote."""
    chosen = aliases.get(CANDIDATE) if config.version is None else str(config.version)
    if chosen is None:
        raise UserError(
            f"name: {config.name} has no {CANDIDATE}, expected a version with this alias or --version; `ptmrec register` "
            "makes one"
        )
    if chosen == aliases.get(CHAMPION) and chosen != aliases.get(CANDIDATE):  # both: a promotion that was killed
        raise UserError(f"version: {chosen} of {config.name} is its champion already; expected another version")
    return chosen


def _pass_gate(client: "MlflowClient", config: PromoteConfig, ours: Any, theirs: Any) -> str:
    """Return the gate's finding, or raise `NotPromoted`."""
    if config.on is None:
        _require_same_data(config, ours, theirs)
        verdict, account = judge(_per_user(client, ours), _per_user(client, theirs), config), ""
    else:
        dataset = Dataset(config.on, option="on")
        uris = [f"models:/{config.name}/{version.version}" for version in (ours, theirs)]
        with verified_files(uris[0]) as our_files, verified_files(uris[1]) as their_files:
            found = compare_on(dataset, our_files / SERVED, their_files / SERVED)
        verdict, account = judge(found.ours, found.theirs, config, PHASE), f"; {found.account}"
    if not verdict.passed:
        raise NotPromoted(
            f"name: version {ours.version} of {config.name} is not promoted: {verdict.finding}{account}; expected "
            f"{verdict.expected}"
        )
    _print_lists(ours, theirs)
    return f"{verdict.finding}, which was version {theirs.version}{account}"


def _check_lists(config: PromoteConfig, ours: Any, theirs: Any | None) -> None:
    """Raise `NotPromoted` where lists break a limit of `config.gate`."""
    broken = judge_lists(_lists(ours), None if theirs is None else _lists(theirs), config.gate)
    if broken:
        raise NotPromoted(f"name: version {ours.version} of {config.name} is not promoted: {'; '.join(broken)}")


def _print_lists(ours: Any, theirs: Any) -> None:
    """Show what changes for users besides accuracy."""
    before, after = _lists(theirs), _lists(ours)
    both = [name for name in LIST_PROPERTIES if name in before and name in after]
    if both:
        shown = ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in both)
        print(f"lists on validation, besides accuracy: {shown}")


def _lists(version: Any) -> dict[str, float]:
    """Properties of a version's lists and recalls of groups, measured at registration."""
    tags = {name.removeprefix(LIST_TAG): value for name, value in version.tags.items() if name.startswith(LIST_TAG)}
    return {name: float(value) for name, value in tags.items()}


def _require_same_data(config: PromoteConfig, ours: Any, theirs: Any) -> None:
    data = [version.tags.get("data", "unknown") for version in (ours, theirs)]
    if data[0] != data[1]:
        raise UserError(
            f"name: version {ours.version} of {config.name} was trained on data {data[0][:12]}, its champion, version "
            f"{theirs.version}, on {data[1][:12]}; compare both on interactions that neither was trained on by --on SHARDS, "
            f"or promote without a comparison by `ptmrec register --alias {CHAMPION}`"
        )


def _per_user(client: "MlflowClient", version: Any) -> pl.DataFrame:
    """Each user's metrics of a version, recorded at registration."""
    import mlflow.artifacts

    with TemporaryDirectory() as scratch:
        folder = f"{client.get_model_version_download_uri(version.name, version.version)}/{SERVED}"
        if not mlflow.artifacts.list_artifacts(artifact_uri=folder):
            raise absent_files(client, version)
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{folder}/{PER_USER_FILE}", dst_path=scratch))
        if sha256(path) != version.tags.get(PER_USER_TAG):
            raise UserError(
                f"name: {PER_USER_FILE} of version {version.version} of {version.name} was changed; register its run again"
            )
        return pl.read_parquet(path)
