"""Access to the MLflow store of runs and registered models: its location, connection, names and errors.

MLflow is imported only here and by modules that use a client from here, and never at import time: training runs without it.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ptmrec_dist.errors import UserError, first_line
from ptmrec_dist.mlflow_moved import files_beside, follow_move
from ptmrec_dist.progress import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# Defaults, unless the user has set them. MLflow's own would retry for minutes, while training waits.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # it would copy the lock file of the working folder's project into a model
}


def connect(must_exist: bool = False) -> "MlflowClient":
    """Connect to MLflow at `tracking_uri`; a SQLite file is created if it does not exist.

    Args:
        must_exist: Refuse to create one.

    Returns:
        A client for runs and for the model registry.

    Raises:
        ImportError: MLflow is not installed.
        UserError: It cannot be reached, or does not exist and must.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri()
    database = sqlite_file(uri)
    if must_exist and database is not None and not database.is_file():
        raise UserError(
            f"MLflow: there is no {database.name} in {database.parent}; change to the folder where it is, or set "
            "MLFLOW_TRACKING_URI"
        )
    known = "mlflow" in sys.modules  # its import is what takes seconds
    with Progress(total=1, desc="connecting to MLflow", bar_format="{desc}", every=0, leave=False, disable=known):
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        with mlflow_errors():
            if database is not None:
                follow_move(database)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    return client


def tracking_uri() -> str:
    """Get the URI of the MLflow store.

    Returns:
        `MLFLOW_TRACKING_URI`, by default `mlflow.db` in the working directory (as an absolute path, since MLflow caches
        connections by this name).
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{Path('mlflow.db').resolve()}"


def sqlite_file(uri: str) -> Path | None:
    """Get the database file of a store.

    Args:
        uri: URI of the store.

    Returns:
        The file; None for a server.
    """
    return Path(uri.removeprefix(_SQLITE).split("?")[0]).resolve() if uri.startswith(_SQLITE) else None


def find_experiment(client: "MlflowClient", name: str) -> str:
    """Look up an experiment, or create it; with SQLite its files lie in `mlartifacts` beside the database.

    Args:
        client: Client of the store.
        name: Name of the experiment.

    Returns:
        Its id.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(tracking_uri())
        location = files_beside(database).as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return str(found.experiment_id)


def has_run(client: "MlflowClient", run_id: str) -> bool:
    """Check whether the store holds a run that is not deleted.

    Args:
        client: Client of the store.
        run_id: MLflow run id.

    Returns:
        Whether it does.
    """
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def metric_name(name: str) -> str:
    """Convert the name of a metric to one that MLflow allows and groups by part.

    Args:
        name: As in `metrics.json`, flattened: `validation.recall@20`.

    Returns:
        `validation/recall_at_20`.
    """
    return name.replace(".", "/").replace("@", "_at_")


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn any error of MLflow, its database or its HTTP client into a one-line `UserError`.

    Yields:
        Nothing.

    Raises:
        UserError: The block raised an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = _without_password(tracking_uri())
        raise UserError(
            f"MLflow at {where}: {reason(error)}; check the server and MLFLOW_TRACKING_URI (training runs without "
            "it by --tracking.enabled false)"
        ) from error


def reason(error: Exception) -> str:
    """Summarize an error in one line.

    Args:
        error: Any error.

    Returns:
        The first line of its message, or its type if it has none; passwords in URLs are masked.
    """
    return _without_password(first_line(error))


def _without_password(text: str) -> str:
    return re.sub(r"://[^@/\s]*@", "://***@", text)
