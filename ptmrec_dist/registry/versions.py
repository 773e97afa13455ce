"""What the registry holds: models, their versions, aliases and champions; unknown ones are refused in one line."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ptmrec_dist.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
HISTORY_TAG = "champions"
"""Tag of a registered model: its champions so far, the present one last, as a JSON list of versions."""


def all_models(client: "MlflowClient") -> list[Any]:
    """List the registered models, however many there are.

    Args:
        client: Client of the registry.

    Returns:
        MLflow's registered models by name.
    """
    return list(_pages(client.search_registered_models))


def find_model(client: "MlflowClient", name: str) -> Any:
    """Look a registered model up.

    Args:
        client: Client of the registry.
        name: Its name.

    Returns:
        MLflow's registered model.

    Raises:
        UserError: There is none of that name.
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
        name: Its name, with any quotes in it; by default those of all are listed.

    Returns:
        MLflow's versions, newest first.
    """
    # MLflow's filters know no escapes: a name is put into quotes that it does not hold; one with both kinds is not asked for.
    quotes = [quote for quote in "'\"" if name is not None and quote not in name]
    asked = f"name = {quotes[0]}{name}{quotes[0]}" if quotes else None
    found = _pages(lambda page_token: client.search_model_versions(asked, page_token=page_token))
    return sorted((one for one in found if name in (None, one.name)), key=lambda one: -int(one.version))


def find_version(client: "MlflowClient", name: str, version: str) -> Any:
    """Look a version up.

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
    for one in versions:
        if str(one.version) == version:
            return one
    numbers = ", ".join(str(one.version) for one in versions)
    raise UserError(f"version: got {version!r}, expected one of {name}'s: {numbers or 'none is left'}")


def aliases_of(client: "MlflowClient", name: str) -> dict[str, str]:
    """List the aliases of a registered model.

    Args:
        client: Client of the registry.
        name: Its name.

    Returns:
        Alias to version.

    Raises:
        UserError: There is none of that name.
    """
    return {alias: str(version) for alias, version in find_model(client, name).aliases.items()}


def champions_of(client: "MlflowClient", name: str) -> list[str]:
    """List the champions so far.

    Args:
        client: Client of the registry.
        name: Name of a registered model.

    Returns:
        Versions, the present one last.
    """
    return [str(version) for version in json.loads(find_model(client, name).tags.get(HISTORY_TAG, "[]"))]


def crown(client: "MlflowClient", name: str, version: str) -> None:
    """Make a version the champion and append it to the list of champions.

    Args:
        client: Client of the registry.
        name: Name of the registered model.
        version: Its version.
    """
    present = aliases_of(client, name).get(CHAMPION)
    line = [one for one in champions_of(client, name) if one not in (present, version)]
    line += [one for one in (present, version) if one is not None]
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(list(dict.fromkeys(line))))
    client.set_registered_model_alias(name, CHAMPION, version)


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
