"""Loading a registered model, once its files are those that were registered."""

import shutil
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import connect, reason, tracking_uri
from ptmrec_dist.registry.versions import all_models
from ptmrec_dist.serving.digests import tree_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "digest"
"""Tag of a version: one digest over all of its files, its code included."""
ADDED_BY_MLFLOW = "registered_model_meta"
"""File that MLflow puts beside what it downloads."""


def load_model(uri: str) -> Any:
    """Load a registered model.

    Its files are compared with the digest that the version was registered with before any of its code runs. A model that
    `mlflow models serve` loads by itself is compared with the digests in its own folder.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the folder of a model.

    Returns:
        MLflow's pyfunc model, whose `predict` takes a table with the column `user_id`.

    Raises:
        UserError: There is no such model, no registry, or files that were changed.
    """
    with ExitStack() as files:
        model = _open(files.enter_context(verified_files(uri)), uri)
        weakref.finalize(model, files.pop_all().close)  # the encoder is read when the first new item comes
        return model


@contextmanager
def verified_files(uri: str) -> Iterator[Path]:
    """Get the files of a registered model, for as long as the context is open.

    Args:
        uri: As `load_model` takes it.

    Yields:
        A private copy that equals what was registered; the folder itself where `uri` is one.

    Raises:
        UserError: As in `load_model`.
    """
    if not uri.startswith("models:/"):
        if not (Path(uri) / "MLmodel").is_file():
            raise UserError(
                f"model: got {uri!r}, expected models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder"
            )
        yield Path(uri)
        return
    client = client_of_registry(must_exist=True)
    import mlflow.artifacts

    with TemporaryDirectory(prefix="ptmrec-model-") as files:
        with _naming_models(uri, client):
            version = _version_of(client, uri)  # before its files: an alias may move meanwhile
            fixed = f"models:/{version.name}/{version.version}"
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=fixed, dst_path=files))
            if not (folder / "MLmodel").is_file():
                raise absent_files(client, version)
        # A server that reads the store itself leaves compiled code there; it is no part of the model and must not run.
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled)
        said = version.tags.get(DIGEST_TAG)
        found = tree_digest(folder, but=ADDED_BY_MLFLOW)
        if said != found:
            raise UserError(
                f"model: the files of {uri} are {found[:12]}, but its version was registered as {str(said)[:12]}: they "
                "were changed; register the run again"
            )
        yield folder


def absent_files(client: "MlflowClient", version: Any) -> UserError:
    """Say that a version's files are not where the store records them.

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
    """Connect to MLflow, which the registry cannot do without, and make its `models:/` names those of this store.

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


def _open(folder: Path, uri: str) -> Any:
    import mlflow.pyfunc

    with _naming_models(uri, None):
        return mlflow.pyfunc.load_model(str(folder))


def _version_of(client: "MlflowClient", uri: str) -> Any:
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, version = name.partition("/")
    return client.get_model_version(name, version)


@contextmanager
def _naming_models(uri: str, client: "MlflowClient | None") -> Iterator[None]:
    """Say which models there are where one cannot be loaded."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        models = [] if client is None else all_models(client)
        names = [f"{model.name}@{alias}" for model in models for alias in model.aliases]
        known = ", ".join(names) or "none"
        raise UserError(f"model: cannot load {uri} ({reason(error)}); registered are: {known}") from error
