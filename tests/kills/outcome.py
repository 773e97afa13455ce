"""What a command leaves: all bytes, but for what differs between any two runs."""

import re
import shutil
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from ptmrec_dist.registry.publishing import upload_of
from ptmrec_dist.registry.versions import all_versions, champions_of
from ptmrec_dist.serving.digests import tree_digest
from tests.data.small_catalogue import folder_bytes

UNEQUAL = {
    "*efficiency.json": "times and memory",
    "out/tables/costs.*": "the times of an experiment's runs",
    "out/report.html": "the page of an experiment or of the demo, with these times",
    "out/logs/*": "what steps printed: progress with times",
    "out/seconds.json": "how long the demo's steps took",
}
"""Patterns of files whose content is different in any two runs, and why."""
_RUN_ID = re.compile(rb'("mlflow_run": )"[0-9a-f]{32}"')
"""MLflow makes up an id for each run."""
_STORE = ("mlflow.db", "mlartifacts")
"""Files of MLflow, full of ids and times: compared by what is registered and logged."""
_UNEQUAL_TAGS = {
    "digest": "over all files of a version, of which MLmodel has a time and an id; ours are compared one by one",
    "ptmrec.process": "the process that was killed right after it had set the alias",
    "ptmrec.key": "a random number under which a run is created",
}
"""Tags that are left out, and why."""


def left(folder: Path) -> dict[str, Any]:
    """All files, and empty folders, by name; a store of MLflow by what is in it."""
    empty = {
        f"{path.relative_to(folder)}/": b"" for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())
    }
    files = {
        name: b"" if any(fnmatch(name, pattern) for pattern in UNEQUAL) else _RUN_ID.sub(rb"\1ID", data)
        for name, data in folder_bytes(folder).items()
    }
    found = {name: data for name, data in (empty | files).items() if not name.startswith(_STORE)}
    return found | ({"mlflow": in_store(folder)} if (folder / "mlflow.db").is_file() else {})


def in_store(folder: Path) -> dict[str, Any]:
    """What is registered and logged in the store of a folder; every version can be used, whatever was killed.

    Its files are those that were registered, its tags are all there, and each alias names a version.
    """
    with TemporaryDirectory() as copy:  # MLflow keeps connections by name, and this is another store each time
        for path in folder.glob("mlflow.db*"):
            shutil.copy(path, copy)
        client = MlflowClient(f"sqlite:///{copy}/mlflow.db")
        experiments = [one.experiment_id for one in client.search_experiments()]
        uploads = {model.model_id: model for model in client.search_logged_models(experiments)}
        return {
            "models": {model.name: _model(client, model, uploads) for model in client.search_registered_models()},
            "runs": sorted((_run(run) for run in client.search_runs(experiments)), key=str),
            "uploads": Counter(model.status for model in uploads.values()),
        }


def _model(client: MlflowClient, model: RegisteredModel, uploads: dict[str, LoggedModel]) -> dict[str, Any]:
    versions = {}
    for version in all_versions(client, model.name):
        upload = upload_of(client, model.name, version.version)
        assert upload is not None
        versions[int(version.version)] = _version(version, uploads[upload])
    assert set(map(int, model.aliases.values())) <= versions.keys()
    return {"aliases": model.aliases, "champions": champions_of(client, model.name), "versions": versions}


def _version(version: ModelVersion, upload: LoggedModel) -> dict[str, Any]:
    files = Path(unquote(urlparse(upload.artifact_location).path))
    assert tree_digest(files) == version.tags["digest"]
    assert {"run", "recommender", "per_user_digest"} <= version.tags.keys()
    return {"tags": _equal(version.tags), "files": folder_bytes(files / "artifacts/model")}


def _run(run: Run) -> dict[str, Any]:
    own = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    about = {"name": run.info.run_name, "status": run.info.status, "params": run.data.params}
    return {**about, "tags": _equal(own), "metrics": set(run.data.metrics)}


def _equal(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name not in _UNEQUAL_TAGS}
