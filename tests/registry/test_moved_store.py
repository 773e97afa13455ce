"""A local store that was moved or copied serves its models, and one with missing files is refused."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from ptmrec_dist.config import PromoteConfig, RegisterConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import connect
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.promoting import promote
from ptmrec_dist.registry.registering import register
from tests.registry.films import Catalogue


@pytest.fixture
def copied(sqlite_registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store's folder, while the original is still there."""
    folder = tmp_path / "a folder with spaces" / "store"
    shutil.copytree(Path(sqlite_registry.removeprefix("sqlite:///")).parent, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_copied_store_loads_and_registers_among_its_own_files(
    catalogue: Catalogue, copied: Path, sqlite_registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path(sqlite_registry.removeprefix("sqlite:///")).parent
    before = _files(original)
    users = pd.DataFrame({"user_id": ["1"]})
    answer = load_model("models:/films@champion").predict(users)
    register(RegisterConfig(run=catalogue.stage1, name="films"))
    assert _files(original) == before
    moved = tmp_path / "moved"
    copied.rename(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    pd.testing.assert_frame_equal(load_model("models:/films@champion").predict(users), answer)
    load_model("models:/films@candidate")


def test_a_store_with_a_folder_of_its_own_elsewhere_keeps_it(
    copied: Path, empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the database was moved: its files are still where it records them."""
    connect()
    (tmp_path / "alone").mkdir()
    shutil.move(copied / "mlflow.db", tmp_path / "alone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/alone/mlflow.db")
    load_model("models:/films@champion")


def test_files_that_are_absent_are_not_called_changed(copied: Path) -> None:
    connect()
    shutil.rmtree(copied / "mlartifacts")
    message = r"model: no files at file://.*/a%20folder%20with%20spaces/store/mlartifacts/models/\S+, where the store records "
    with pytest.raises(UserError, match=message + "version 1 of films; bring its mlartifacts back there or beside its"):
        load_model("models:/films@champion")


def test_a_gate_with_missing_files_is_refused(catalogue: Catalogue, copied: Path) -> None:
    register(RegisterConfig(run=catalogue.stage1, name="films"))
    for path in (copied / "mlartifacts" / "models").iterdir():
        shutil.rmtree(path)
    with pytest.raises(UserError, match=r"model: no files at file://.*, where the store records version \d of films"):
        promote(PromoteConfig(name="films"))
