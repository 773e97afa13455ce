"""MLflow tracking: the settings, metrics, files and lineage of a training run, logged by rank 0.

Training uses a `Tracker` and never MLflow directly: where tracking is off, MLflow is not installed, or the process is not
rank 0, the tracker does nothing. It uses MLflow's client, which has no global state: several trackers may be open in one
process.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ptmrec_dist.config import TrackingConfig
from ptmrec_dist.files import read_json, write_atomically
from ptmrec_dist.mlflow_store import connect, find_experiment, has_run, metric_name, mlflow_errors, reason
from ptmrec_dist.processes import is_first_rank

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

NOTE_FILE = "tracking.json"
_PARENT_TAG = "mlflow.parentRunId"
_KEY_TAG = "ptmrec.key"
_BATCH = 100  # MLflow's limit of parameters or tags per request


class Tracker:
    """A tracker that does nothing, and the interface of the one that logs; `start` chooses. A context manager."""

    run_id: str | None = None
    """MLflow run id; None if nothing is logged."""

    @staticmethod
    def start(
        config: TrackingConfig,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: str | None = None,
        folder: Path | None = None,
        active: bool | None = None,
    ) -> "Tracker":
        """Open an MLflow run, or resume one.

        Args:
            config: Settings.
            name: Name of the run.
            params: Dotted key to value.
            tags: Lineage, as fingerprints.
            parent: Parent MLflow run, unless the settings name another.
            folder: Output folder. Its `tracking.json` records the run, which is resumed after an interruption: what it already
                holds is not logged again. By default a new run is opened.
            active: Whether this process logs; by default only rank 0 does.

        Returns:
            A tracker, to be used as a context manager: the run ends as FINISHED, FAILED or KILLED.

        Raises:
            UserError: The MLflow store cannot be reached.
        """
        if not (is_first_rank() if active is None else active):
            return Tracker()
        note, client = _Note(folder), _client(config)
        if client is None:
            note.write(None)
            return Tracker()
        with mlflow_errors():
            tracker = _MlflowTracker(client, _open_run(client, config.experiment, name, note), note)
            tracker.params(params)
        above = config.parent or parent
        tracker.tags({**tags, _PARENT_TAG: above} if above else tags)
        return tracker

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step.

        Args:
            values: Metric (`validation.recall@20`) to value; logged to MLflow under `metric_name`.
            step: Epoch or step of the values. A metric is logged once per step: the first value is kept.
        """

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags.

        Args:
            tags: Tag to value.
        """

    def artifacts(self, paths: Sequence[Path]) -> None:
        """Copy files to the run.

        Args:
            paths: Files.
        """

    def interrupted(self) -> None:
        """Mark the run as interrupted: it ends as KILLED and can be resumed."""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _MlflowTracker(Tracker):
    """Logs to MLflow. What cannot be sent is sent with the next call: the server may be unavailable at times."""

    run_id: str

    def __init__(self, client: "MlflowClient", run_id: str, note: "_Note") -> None:
        self.run_id = run_id
        self._client, self._note = client, note
        self._status = "FINISHED"
        self._unsent: dict[str, list[Any]] = {"metrics": [], "tags": []}
        self._logged = {
            (name, point.step)
            for name in client.get_run(run_id).data.metrics
            for point in client.get_metric_history(run_id, name)
        }

    def params(self, params: Mapping[str, Any]) -> None:
        """Log settings, dotted key to value; a resumed run keeps those that it has."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        fresh = [Param(name, str(value)) for name, value in params.items() if name not in known]
        for start in range(0, len(fresh), _BATCH):
            self._client.log_batch(self.run_id, params=fresh[start : start + _BATCH])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {metric_name(name): value for name, value in values.items()}
        fresh = [name for name in named if (name, step) not in self._logged]
        self._logged.update((name, step) for name in fresh)
        self._unsent["metrics"] += [Metric(name, named[name], now, step) for name in fresh]
        self._send()

    def tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._unsent["tags"] += [RunTag(name, str(value)) for name, value in tags.items()]
        self._send()

    def artifacts(self, paths: Sequence[Path]) -> None:
        for path in paths:
            with self._warning(f"{path.name} is not copied to MLflow; it stays in the run folder"):
                self._client.log_artifact(self.run_id, str(path))

    def interrupted(self) -> None:
        self._status = "KILLED"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._send("are not in MLflow; the run folder has them")
        with self._warning(f"the run is not marked as {self._status}"):
            self._client.set_terminated(self.run_id, self._status)
            if self._status == "FINISHED":
                self._note.write(self.run_id)

    def _send(self, otherwise: str = "wait for the next call") -> None:
        waiting = sum(map(len, self._unsent.values()))
        with self._warning(f"{waiting} metrics and tags {otherwise}"):
            for kind, entities in self._unsent.items():
                while entities:
                    self._client.log_batch(self.run_id, **{kind: entities[:_BATCH]})
                    del entities[:_BATCH]

    @contextmanager
    def _warning(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: tracking must never end a training run
            log.warning("tracking: %s (%s)", consequence, reason(error))


def has_tracked_run(folder: Path) -> bool:
    """Check whether an output folder records an MLflow run.

    Args:
        folder: Output folder.

    Returns:
        Whether it does.
    """
    return _Note(folder).run_id is not None


def is_open(folder: Path) -> bool:
    """Check whether the MLflow run that an output folder records has not ended: its process was killed or is still at it.

    Args:
        folder: Output folder.

    Returns:
        Whether it has not.
    """
    return _Note(folder).is_open


class _Note:
    """The file of an output folder that records its MLflow run, whether it is open, and first the key to create it under."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / NOTE_FILE
        found = {} if self._path is None or not self._path.is_file() else read_json(self._path, "out")
        self.run_id: str | None = found.get("mlflow_run")
        self.is_open: bool = found.get("open", False)
        self.key: str | None = found.get("key")

    def write(self, run_id: str | None, **more: str | bool) -> None:
        if self._path is not None:
            write_atomically(self._path, json.dumps({"mlflow_run": run_id, **more}))


def _client(config: TrackingConfig) -> "MlflowClient | None":
    """Connect to MLflow where tracking is on and it is installed; otherwise say why nothing is logged."""
    if not config.enabled:
        print("tracking: off, nothing is logged to MLflow")
        return None
    try:
        return connect()
    except ImportError as error:
        print(f"tracking: off, MLflow cannot be imported ({error})")
        return None


def _open_run(client: "MlflowClient", experiment: str, name: str, note: _Note) -> str:
    if note.run_id is not None:
        if has_run(client, note.run_id):
            client.update_run(note.run_id, status="RUNNING")
            note.write(note.run_id, open=True)
            return note.run_id
        log.warning("tracking: MLflow run %s is gone; a new one replaces it", note.run_id)
    run_id = _create_run(client, find_experiment(client, experiment), name, note)
    note.write(run_id, open=True)
    return run_id


def _create_run(client: "MlflowClient", experiment: str, name: str, note: _Note) -> str:
    """Create a run, or find the one that a process created which was killed before it could record it."""
    if note.key is not None:
        found = client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{note.key}'")
        if found:
            return str(found[0].info.run_id)
    key = uuid4().hex
    note.write(None, key=key)
    return str(client.create_run(experiment, run_name=name, tags={_KEY_TAG: key}).info.run_id)
