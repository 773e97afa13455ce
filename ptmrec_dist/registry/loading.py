"""Loading of a registered model, after verifying that its files are those that were registered.

A model is read into memory completely: the downloaded files are gone when `load_model` returns.
"""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import connect, reason, tracking_uri
from ptmrec_dist.processes import raising_on_sigterm
from ptmrec_dist.registry.versions import all_models
from ptmrec_dist.serving.digests import tree_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "digest"
"""Tag of a version: one digest over all of its files, its code included."""
ADDED_BY_MLFLOW = "registered_model_meta"
"""File that MLflow adds to a download."""
_SCHEME = "models:/"


def load_model(uri: str) -> Any:
    """Load a registered model, including its encoder.

    Its files are compared with the digest recorded at registration before any of its code runs. A model that
    `mlflow models serve` loads directly is compared with the digests in its own folder, which do not cover its code.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the folder of a model.

    Returns:
        MLflow's pyfunc model, whose `predict` takes a table with the column `user_id`; see `RegisteredModel`.

    Raises:
        UserError: No such model, no registry, or changed files.
    """
    with verified_files(uri) as folder:
        import mlflow.pyfunc

        from ptmrec_dist.registry.registered_model import RegisteredModel

        with _naming_models(uri, None):
            # Other versions of packages are reported by the model itself, where they matter to its output.
            return RegisteredModel.of(mlflow.pyfunc.load_model(str(folder), suppress_warnings=True))


@contextmanager
def verified_files(uri: str) -> Iterator[Path]:
    """Get the files of a registered model, for as long as the context is open.

    Args:
        uri: As in `load_model`.

    Yields:
        A private copy, equal to what was registered; the folder itself if `uri` is one.

    Raises:
        UserError: As in `load_model`.
    """
    if not uri.startswith(_SCHEME):
        if not (Path(uri) / "MLmodel").is_file():
            raise UserError(
                f"model: got {uri!r}, expected models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder"
            )
        yield Path(uri)
        return
    client = client_of_registry(must_exist=True)
    import mlflow.artifacts

    with raising_on_sigterm(SystemExit, 128 + signal.SIGTERM), TemporaryDirectory(prefix="ptmrec-model-") as files:
        with _naming_models(uri, client):
            version = _version_of(client, uri)  # before its files: an alias may move meanwhile
            fixed = f"{_SCHEME}{version.name}/{version.version}"
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=fixed, dst_path=files))
            if not (folder / "MLmodel").is_file():
                raise absent_files(client, version)
        # A server that reads the store directly leaves compiled code there; it is not part of the model and must not run.
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled)
        recorded = version.tags.get(DIGEST_TAG)
        found = tree_digest(folder, but=ADDED_BY_MLFLOW)
        if recorded != found:
            raise UserError(
                f"model: the files of {uri} are {found[:12]}, but its version was registered as {str(recorded)[:12]}: they "
                "were changed; register the run again"
            )
        yield folder


def pinned(uri: str) -> str:
    """Replace the alias of a model by the version that it points at now.

    Args:
        uri: As in `load_model`.

    Returns:
        `models:/NAME/VERSION`; a folder unchanged.

    Raises:
        UserError: There is no such model, or no registry.
    """
    if not uri.startswith(_SCHEME):
        return uri
    client = client_of_registry(must_exist=True)
    with _naming_models(uri, client):
        version = _version_of(client, uri)
    return f"{_SCHEME}{version.name}/{version.version}"


def absent_files(client: "MlflowClient", version: Any) -> UserError:
    """Make the error for a version whose files are not where the store records them.

    Args:
        client: Client of the registry.
        version: The version.

    Returns:
        The error.
    """
    location = client.get_model_version_download_uri(version.name, version.version)
    if location.startswith("models:/"):
        location = client.get_logged_model(location.removeprefix("models:/")).artifact_location
    return UserError(
        f"model: no files at {location}, where the store records version {version.version} of {version.name}; bring its "
        "mlartifacts back there or beside its mlflow.db, or register the run again"
    )


def client_of_registry(must_exist: bool = False) -> "MlflowClient":
    """Connect to MLflow, which the registry requires, and resolve `models:/` names in this store.

    Args:
        must_exist: Refuse to create a store.

    Returns:
        A client.

    Raises:
        UserError: MLflow is not installed, cannot be reached, or does not exist and must.
    """
    try:
        client = connect(must_exist)
    except ImportError as error:
        raise UserError(f"MLflow cannot be imported ({error}); install it with `pip install mlflow`") from error
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())  # names are resolved through this global setting alone
    return client


def _version_of(client: "MlflowClient", uri: str) -> Any:
    name, at, alias = uri.removeprefix(_SCHEME).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, version = name.partition("/")
    return client.get_model_version(name, version)


@contextmanager
def _naming_models(uri: str, client: "MlflowClient | None") -> Iterator[None]:
    """Turn a failure to load a model into a message that lists the registered ones."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if client is None:
            raise UserError(f"model: cannot load {uri} ({reason(error)}); register the run again") from error
        names = [f"{model.name}@{alias}" for model in all_models(client) for alias in model.aliases]
        known = ", ".join(names) or "none"
        raise UserError(f"model: cannot load {uri} ({reason(error)}); registered are: {known}") from error
