"""The MLflow that runs are logged to and models are registered in: where it is, reaching it, its names and its errors.

MLflow is imported only here and in what asks this module for a client, and never at import: training runs without it.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_moved import files_beside, follow_move

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# Left alone where the user has set them. MLflow would by itself try again for minutes, while training waits.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # it would copy the lock file of the working folder's project into a model
}


def connect(must_exist: bool = False) -> "MlflowClient":
    """Connect to the MLflow that `tracking_uri` names, which is created where it is a new SQLite file.

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
    database = _sqlite_file(uri)
    if must_exist and database is not None and not database.is_file():
        raise UserError(
            f"MLflow: there is no {database.name} in {database.parent}; change to the folder where it is, or set "
            "MLFLOW_TRACKING_URI"
        )
    with tqdm(total=1, desc="connecting to MLflow", bar_format="{desc}", leave=False):
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
    """Say where MLflow is.

    Returns:
        `MLFLOW_TRACKING_URI`, by default `mlflow.db` in the working directory (as an absolute path, for MLflow keeps
        connections by this name).
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{Path('mlflow.db').resolve()}"


def find_experiment(client: "MlflowClient", name: str) -> str:
    """Look an experiment up, and create it where it is new; with SQLite its files lie in `mlartifacts` beside the file.

    Args:
        client: Client of the store.
        name: Name of the experiment.

    Returns:
        Its id.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = _sqlite_file(tracking_uri())
        location = files_beside(database).as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return str(found.experiment_id)


def has_run(client: "MlflowClient", run_id: str) -> bool:
    """Look whether the store holds a run, not deleted.

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
    """Turn our name of a metric into one that MLflow allows and groups by part.

    Args:
        name: As in `metrics.json`, flattened: `validation.recall@20`.

    Returns:
        `validation/recall_at_20`.
    """
    return name.replace(".", "/").replace("@", "_at_")


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn whatever MLflow, its database or its HTTP client raises into one line.

    Yields:
        Nothing.

    Raises:
        UserError: Any of them failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = _without_password(tracking_uri())
        raise UserError(
            f"MLflow at {where}: {reason(error)}; look at the server and at MLFLOW_TRACKING_URI (training runs without "
            "it by --tracking.enabled false)"
        ) from error


def reason(error: Exception) -> str:
    """Say in one line what went wrong.

    Args:
        error: Any error.

    Returns:
        The first line of its message, or its kind where it has none; without the password of an address.
    """
    return _without_password((str(error).strip() or type(error).__name__).splitlines()[0])


def _without_password(text: str) -> str:
    return re.sub(r"://[^@/\s]*@", "://***@", text)


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE).split("?")[0]).resolve() if uri.startswith(_SQLITE) else None
