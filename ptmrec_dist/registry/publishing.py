"""Upload of a package as a version of a registered model.

MLflow has no transaction over an upload, a version and an alias, so a killed process may leave the first without the last.
A tag names the process while it registers: the next one completes the version of one that was killed, or removes its upload.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmrec_dist.config import TrackingConfig
from ptmrec_dist.files import parse_json, typed
from ptmrec_dist.lock import Owner
from ptmrec_dist.mlflow_store import find_experiment, has_run
from ptmrec_dist.registry.loading import DIGEST_TAG
from ptmrec_dist.registry.versions import CHAMPION, all_pages, all_versions, set_champion

if TYPE_CHECKING:
    from mlflow import MlflowClient

_UPLOADED = "recommender"
"""Name of every upload."""
_UPLOAD = re.compile(r"/models/(m-[0-9a-f]+)/artifacts")
OWNER_TAG = "ptmrec.process"
"""Tag of an upload, and of a version without its alias: the process that registers or deletes it, as in a lock."""


def publish(
    client: "MlflowClient", package: Path, source_run: str | None, name: str, alias: str, tags: dict[str, str]
) -> str:
    """Upload a package and make it a version of a model.

    The alias is set last: after any failure it still points at a complete model, and the same command completes the version.

    Args:
        client: Client of the registry.
        package: What `save_pyfunc` wrote.
        source_run: MLflow run that it comes from, if there is one.
        name: Name of the model.
        alias: Alias to set.
        tags: Tags of the version.

    Returns:
        Number of the version.
    """
    remove_abandoned(client)
    version = _begun_before(client, name, tags) or _create(client, package, source_run, name, tags)
    if alias == CHAMPION:
        set_champion(client, name, version)
    else:
        client.set_registered_model_alias(name, alias, version)
    client.delete_model_version_tag(name, version, OWNER_TAG)
    upload = upload_of(client, name, version)
    if upload is not None:
        client.delete_logged_model_tag(upload, OWNER_TAG)
    return version


def remove_abandoned(client: "MlflowClient") -> None:
    """Delete uploads that belong to no version and never will: the process that made or deleted them has ended.

    Args:
        client: Client of the registry.
    """
    experiments = [one.experiment_id for one in all_pages(client.search_experiments)]
    if not experiments:  # a server refuses a search in none
        return
    uploads = all_pages(
        lambda page_token: client.search_logged_models(experiments, f"name = '{_UPLOADED}'", page_token=page_token)
    )
    abandoned = {upload.model_id for upload in uploads if _is_abandoned(upload.tags)}
    for upload in abandoned and abandoned - uploads_in_use(client):
        client.delete_logged_model(upload)


def uploads_in_use(client: "MlflowClient") -> set[str | None]:
    """List the uploads that versions consist of, copies of versions included.

    Args:
        client: Client of the registry.

    Returns:
        Ids of MLflow's logged models; None for versions that have none.
    """
    return {upload_of(client, version.name, str(version.version)) for version in all_versions(client)}


def upload_of(client: "MlflowClient", name: str, version: str) -> str | None:
    """Find the upload that a version, or the one that it is a copy of, consists of.

    Args:
        client: Client of the registry.
        name: Name of the registered model.
        version: Number of the version.

    Returns:
        Id of MLflow's logged model, from the URI of its files: other fields of a version name it on some stores only. None
        for a version that something else registered.
    """
    found = _UPLOAD.search(client.get_model_version_download_uri(name, version))
    return None if found is None else found[1]


def owner_tag() -> dict[str, str]:
    """Describe this process as the one that works on an upload.

    Returns:
        A tag.
    """
    return {OWNER_TAG: json.dumps(asdict(Owner.this_process()))}


def _is_abandoned(tags: Mapping[str, str]) -> bool:
    try:
        return typed(Owner, parse_json(tags[OWNER_TAG])).is_gone
    except (KeyError, ValueError):
        return False


def _begun_before(client: "MlflowClient", name: str, tags: Mapping[str, str]) -> str | None:
    """The same version by a process that was killed before it set the alias; its files have another time in them."""
    for version in all_versions(client, name):
        if _is_abandoned(version.tags) and _lasting(version.tags) == _lasting(tags):
            return str(version.version)
    return None


def _lasting(tags: Mapping[str, str]) -> dict[str, str]:
    return {tag: value for tag, value in tags.items() if tag not in (OWNER_TAG, DIGEST_TAG)}


def _create(client: "MlflowClient", package: Path, source_run: str | None, name: str, tags: dict[str, str]) -> str:
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    if source_run is not None and has_run(client, source_run):
        experiment = client.get_run(source_run).info.experiment_id
    else:
        source_run, experiment = None, find_experiment(client, TrackingConfig().experiment)
    upload: Any = client.create_logged_model(experiment, name=_UPLOADED, source_run_id=source_run, tags=owner_tag())
    client.log_model_artifacts(upload.model_id, str(package))
    client.finalize_logged_model(upload.model_id, LoggedModelStatus.READY)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    uri, own = f"models:/{upload.model_id}", tags | owner_tag()
    return str(client.create_model_version(name, uri, source_run, tags=own, model_id=upload.model_id).version)
