"""Queries of the registry: models, their versions, aliases and champions; unknown ones raise a `UserError`."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ptmrec_dist.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
HISTORY_TAG = "champions"
"""Tag of a registered model: its champions so far, the current one last, as a JSON list of versions."""


def all_models(client: "MlflowClient") -> list[Any]:
    """List all registered models, over all pages.

    Args:
        client: Client of the registry.

    Returns:
        MLflow's registered models by name.
    """
    return list(all_pages(client.search_registered_models))


def find_model(client: "MlflowClient", name: str) -> Any:
    """Look up a registered model.

    Args:
        client: Client of the registry.
        name: Its name.

    Returns:
        MLflow's registered model.

    Raises:
        UserError: There is no model of that name.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = ", ".join(sorted(model.name for model in all_models(client)))
        raise UserError(f"name: got {name!r}, expected one of {names or 'none: nothing is registered'}") from error


def all_versions(client: "MlflowClient", name: str | None = None) -> list[Any]:
    """List the versions of a registered model, or of all.

    Args:
        client: Client of the registry.
        name: Its name, which may contain quotes; by default the versions of all models are listed.

    Returns:
        MLflow's versions, newest first.
    """
    # MLflow's filters have no escapes: a name is quoted by the kind of quote that it lacks; one with both is filtered below.
    quotes = [quote for quote in "'\"" if name is not None and quote not in name]
    query = f"name = {quotes[0]}{name}{quotes[0]}" if quotes else None
    found = all_pages(lambda page_token: client.search_model_versions(query, page_token=page_token))
    return sorted(
        (version for version in found if name in (None, version.name)), key=lambda version: -int(version.version)
    )


def find_version(client: "MlflowClient", name: str, version: str) -> Any:
    """Look up a version.

    Args:
        client: Client of the registry.
        name: Name of a registered model.
        version: Number of the version.

    Returns:
        MLflow's version.

    Raises:
        UserError: There is no such model or version.
    """
    find_model(client, name)
    versions = all_versions(client, name)
    for found in versions:
        if str(found.version) == version:
            return found
    numbers = ", ".join(str(found.version) for found in versions)
    raise UserError(f"version: got {version!r}, expected one of {name}'s: {numbers or 'none is left'}")


def aliases_of(client: "MlflowClient", name: str) -> dict[str, str]:
    """List the aliases of a registered model.

    Args:
        client: Client of the registry.
        name: Its name.

    Returns:
        Alias to version.

    Raises:
        UserError: There is no model of that name.
    """
    return {alias: str(version) for alias, version in find_model(client, name).aliases.items()}


def champions_of(client: "MlflowClient", name: str) -> list[str]:
    """List the champions so far.

    Args:
        client: Client of the registry.
        name: Name of a registered model.

    Returns:
        Versions, the current one last: those behind it are of a command that was killed before it moved the alias.
    """
    model = find_model(client, name)
    versions = [str(version) for version in json.loads(model.tags.get(HISTORY_TAG, "[]"))]
    current = str(model.aliases.get(CHAMPION))
    return versions[: versions.index(current) + 1] if current in versions else versions


def set_champion(client: "MlflowClient", name: str, version: str) -> None:
    """Make a version the champion and append it to the list of champions.

    Args:
        client: Client of the registry.
        name: Name of the registered model.
        version: Its version.
    """
    current = aliases_of(client, name).get(CHAMPION)
    history = [number for number in champions_of(client, name) if number not in (current, version)]
    history += [number for number in (current, version) if number is not None]
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(list(dict.fromkeys(history))))
    client.set_registered_model_alias(name, CHAMPION, version)


def all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Search over all pages.

    Args:
        search: One of the client's searches, which takes a `page_token`.

    Yields:
        What it finds.
    """
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
