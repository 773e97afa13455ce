"""Deletion of a version from the registry (`ptmrec delete`)."""

import json

from ptmrec_dist.config import DeleteConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import mlflow_errors
from ptmrec_dist.registry.loading import client_of_registry
from ptmrec_dist.registry.publishing import owner_tag, remove_abandoned, upload_of, uploads_in_use
from ptmrec_dist.registry.versions import (
    CHAMPION,
    HISTORY_TAG,
    aliases_of,
    all_versions,
    champions_of,
    find_version,
)


def delete(config: DeleteConfig) -> None:
    """Delete a version of a registered model, and with the last version the model itself (`ptmrec delete`).

    The files of the version are marked as deleted, unless another version is a copy of it; `mlflow gc` frees their space.

    Args:
        config: Settings.

    Raises:
        UserError: No such model or version, or its champion without `--force`.
    """
    client = client_of_registry(must_exist=True)
    name, version = config.name, str(config.version)
    with mlflow_errors():
        remove_abandoned(client)
        find_version(client, name, version)
        aliases = sorted(alias for alias, number in aliases_of(client, name).items() if number == version)
        if CHAMPION in aliases and not config.force:
            raise UserError(
                f"version: {version} is the champion of {name}; `ptmrec rollback` or `ptmrec promote` another version "
                "first, or delete it anyway by --force"
            )
        rest = [number for number in champions_of(client, name) if number != version]
        client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(rest))
        upload = upload_of(client, name, version)
        if upload is not None:
            client.set_logged_model_tags(upload, owner_tag())
        is_last = len(all_versions(client, name)) == 1
        if is_last:
            client.delete_registered_model(name)
        else:
            client.delete_model_version(name, version)
        if upload is not None and upload not in uploads_in_use(client):
            client.delete_logged_model(upload)
    removed = [f"version {version} of {name}", *(f"its alias {alias}" for alias in aliases)]
    removed += ["the name, which has no version left"] if is_last else []
    print(f"deleted {', '.join(removed)}; `mlflow gc` frees the space of its files")
