"""Environments that MLflow makes for a registered model: this package comes from the model itself, no index has it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.models.cli import commands as mlflow_models

import ptmrec_dist
from ptmrec_dist.config import RegisterConfig
from ptmrec_dist.registry.registering import register
from ptmrec_dist.registry.wheel import write_wheel

PACKAGE = Path(ptmrec_dist.__file__).parent
REQUEST = {"dataframe_records": [{"user_id": "1"}], "params": {"top_k": 3}}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working folder, without this checkout on the import path of child processes."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.fixture
def model(registered, tmp_path) -> Path:
    return Path(mlflow.artifacts.download_artifacts("models:/films@champion", dst_path=str(tmp_path / "model")))


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    version = write_wheel(tmp_path / "a")
    (wheel,) = (tmp_path / "a").iterdir()
    assert wheel.name == f"ptmrec_dist-{version}-py3-none-any.whl"
    assert version.partition("+")[0] == ptmrec_dist.__version__.partition("+")[0]
    with ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = f"ptmrec_dist-{version}.dist-info"
    ours = {path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert files.keys() == {path.relative_to(PACKAGE.parent).as_posix() for path in ours} | metadata
    assert all(files[path.relative_to(PACKAGE.parent).as_posix()] == path.read_bytes() for path in ours)
    assert Parser().parsestr(files[f"{info}/METADATA"].decode())["Version"] == version
    for line in files[f"{info}/RECORD"].decode().splitlines()[:-1]:
        name, digest, size = line.split(",")
        raw = hashlib.sha256(files[name]).digest()
        assert digest == "sha256=" + base64.urlsafe_b64encode(raw).decode().rstrip("=")
        assert int(size) == len(files[name])


def test_version_of_the_wheel_follows_its_content_alone(tmp_path, monkeypatch):
    first, again = write_wheel(tmp_path / "a"), write_wheel(tmp_path / "b")
    assert first == again
    assert (tmp_path / "a" / os.listdir(tmp_path / "a")[0]).read_bytes() == next(
        (tmp_path / "b").iterdir()
    ).read_bytes()
    changed = tmp_path / "ptmrec_dist"
    changed.mkdir()
    (changed / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(ptmrec_dist, "__file__", str(changed / "__init__.py"))
    assert write_wheel(tmp_path / "c") != first


@pytest.mark.slow
def test_model_answers_in_an_environment_made_by_pip_from_its_own_files(model, elsewhere):
    # As in the image of `mlflow models build-docker`: pip reads the model's requirements.txt from another working folder.
    environment = elsewhere.parent / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "others.pth").write_text(
        sysconfig.get_path("purelib")
    )  # all but this package, which has a newer name here
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "uninstall", "--yes", "setuptools"], check=True, capture_output=True)
    install = [python, "-m", "pip", "install", "--no-index", "--quiet", "-r", model / "requirements.txt"]
    subprocess.run(install, check=True, capture_output=True)
    program = "import ptmrec_dist; print(ptmrec_dist.__file__, ptmrec_dist.__version__)"
    imported = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    (wheel,) = model.glob("artifacts/wheels/*.whl")
    assert imported == [str(packages / "ptmrec_dist" / "__init__.py"), wheel.name.split("-")[1]]
    (elsewhere / "request.json").write_text(json.dumps(REQUEST))
    predict = [python, "-m", "mlflow", "models", "predict", "-m", model, "-i", "request.json", "--env-manager", "local"]
    answer = subprocess.run(predict, check=True, capture_output=True, text=True).stdout
    rows = json.loads(answer[answer.index("{") :])["predictions"]
    expected = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"user_id": ["1"]}), params={"top_k": 3})
    assert [row["item_id"] for row in rows] == expected["item_id"].to_list()


@pytest.mark.slow
def test_model_answers_in_an_environment_made_by_uv(model, elsewhere, monkeypatch):
    check = ["uv", "pip", "install", "--dry-run", "--quiet", "--target", "x", "--python", sys.executable, "mlflow"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        pytest.skip("uv or a package index is absent: the environment's other packages cannot be installed")
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(elsewhere / "environments"))
    (elsewhere / "request.json").write_text(json.dumps(REQUEST))
    mlflow.models.predict(
        str(model), input_path="request.json", content_type="json", env_manager="uv", output_path="answer.json"
    )
    rows = json.loads((elsewhere / "answer.json").read_text())["predictions"]
    assert [row["rank"] for row in rows] == [1, 2, 3]


def test_model_in_a_dockerfile_refers_to_nothing_but_itself(registered, catalogue, name, elsewhere):
    # MLflow would copy the lock file of a project in the working folder, and install that project instead.
    for file in ("uv.lock", "pyproject.toml"):
        (elsewhere / file).write_text('[project]\nname = "another"\nversion = "1"\n')
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    arguments = ["generate-dockerfile", "-m", f"models:/{name}@candidate", "-d", "docker"]
    done = CliRunner().invoke(mlflow_models, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "COPY model_dir /opt/ml/model" in (elsewhere / "docker" / "Dockerfile").read_text().replace(
        "model_dir/", "model_dir"
    )
    copied = elsewhere / "docker" / "model_dir"
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in copied.rglob("*")}
    lines = (copied / "requirements.txt").read_text().splitlines()
    (links,) = (line.split()[1] for line in lines if line.startswith("--find-links"))
    (ours,) = (line.split("==")[1] for line in lines if line.startswith("ptmrec-dist"))
    assert (copied / links / f"ptmrec_dist-{ours}-py3-none-any.whl").is_file()
