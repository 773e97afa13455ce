"""Runs on a catalogue of films, and stores with models of them."""

import re
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from ptmrec_dist.config import (
    RegisterConfig,
)
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.registering import register
from tests.registry.films import Catalogue, make_runs
from tests.stores import KINDS, Store


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_runs(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="package")
def sqlite_registry(catalogue: Catalogue, empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_sqlite, folder)
    return fill(catalogue, f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="package")
def postgresql_registry(catalogue: Catalogue, mlflow_server: Store) -> str:
    mlflow_server.empty()
    return fill(catalogue, mlflow_server.uri)


def fill(catalogue: Catalogue, uri: str) -> str:
    """Register stage 2 as films@champion and the ID-only run as ids@candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        register(RegisterConfig(run=catalogue.stage2, name="films", alias="champion"))
        register(RegisterConfig(run=catalogue.ids_only, name="ids"))
    return uri


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A filled registry: on SQLite, or a server on PostgreSQL. A test registers under names of its own."""
    uri: str = request.getfixturevalue(f"{request.param}_registry")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


@pytest.fixture
def registered(sqlite_registry: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The filled registry on SQLite, for what does not depend on the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_registry)
    mlflow.set_tracking_uri(sqlite_registry)
    return MlflowClient(sqlite_registry)


@pytest.fixture
def empty_registry(empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(empty_sqlite, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def films(registered: MlflowClient) -> mlflow.pyfunc.PyFuncModel:
    return load_model("models:/films@champion")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the test's own models, with characters that are special elsewhere."""
    return re.sub(r"\W", "-", request.node.name) + " it's"
