"""`ptmrec doctor` on packed data sets, features, runs and this machine, and that every finding is explained."""

import json
import re
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.config import DoctorConfig, EncoderConfig, PackConfig
from ptmrec_dist.data.feature_store import write_features
from ptmrec_dist.data.manifest import Manifest
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.doctor.command import examine
from ptmrec_dist.doctor.findings import Finding
from ptmrec_dist.doctor.kinds import KINDS
from ptmrec_dist.files import sha256
from tests.conftest import REPOSITORY, Project


def _kinds(*paths: Path, **settings: object) -> set[str]:
    return {finding.kind for finding in _examine(*paths, **settings)}


def _examine(*paths: Path, **settings: object) -> list[Finding]:
    return examine(DoctorConfig(paths=paths, **settings)).findings  # type: ignore[arg-type]


@pytest.fixture
def project(tiny_project: Project, tmp_path: Path) -> Project:
    """A copy that can be damaged, and whose records name the copy."""
    folder = tmp_path / "p"
    shutil.copytree(tiny_project.source, folder)
    shutil.copytree(tiny_project.clip, tmp_path / "clip")
    for record in (folder / "stage1/run.json", folder / "features/manifest.json"):
        text = record.read_text().replace(str(tiny_project.source), str(folder))
        record.write_text(text.replace(str(tiny_project.clip), str(tmp_path / "clip")))
    return Project(folder, folder / "shards", tmp_path / "clip", folder / "features", folder / "stage1")


def test_every_finding_is_explained_where_its_link_points() -> None:
    page = (REPOSITORY / "docs/troubleshooting.md").read_text()
    anchors = [
        re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^### (.*)", page, re.M)
    ]
    assert sorted(anchors) == sorted(KINDS)
    for kind in KINDS:
        finding = Finding(kind, "x", "y")
        assert finding.link == f"docs/troubleshooting.md#{kind}"
        assert "\n" not in finding.remedy


def test_a_healthy_project_gives_no_finding(tiny_project: Project) -> None:
    paths = (tiny_project.shards, tiny_project.features, tiny_project.stage1)
    encoder = EncoderConfig(model=str(tiny_project.clip))
    assert _examine(*paths, encoder=encoder, ranks=4, workers=2) == []


def _rewrite(shards: Path, part: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change a table of a packed data set together with its digest, as a program that writes such folders itself may."""
    path = shards / f"interactions/{part}.parquet"
    changed = change(pl.read_parquet(path))
    changed.write_parquet(path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["files"][f"interactions/{part}.parquet"] = sha256(path)
    manifest["interactions"][part] = changed.height
    (shards / "manifest.json").write_text(json.dumps(manifest))


def test_each_fault_of_a_packed_data_set_is_found_alone(project: Project) -> None:
    shards = project.shards
    assert _kinds(shards, ranks=5, workers=2) == {"too-few-shards"}
    cold = pl.read_parquet(shards / "interactions/cold_test.parquet").head(1)
    before = (shards / "manifest.json").read_bytes(), (shards / "interactions/train.parquet").read_bytes()
    _rewrite(shards, "train", lambda train: pl.concat([train, cold]))
    assert _kinds(shards) == {"cold-items-in-training", "leaking-interactions"}
    (shards / "manifest.json").write_bytes(before[0])
    (shards / "interactions/train.parquet").write_bytes(before[1])
    tar = next(shards.glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    assert _kinds(shards) == {"damaged-shards"}
    tar.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert _kinds(shards) == {"damaged-shards"}
    tar.unlink()
    assert _kinds(shards) == {"damaged-shards"}
    (shards / "manifest.json").write_text("{}")
    assert _kinds(shards) == {"damaged-shards"}


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_a_split_in_time_that_tests_before_training_is_time_travel(split: str, project: Project) -> None:
    out = project.source / f"in-time-{split}"
    pack(PackConfig(interactions=project.source / "interactions.csv", out=out, split=split, core=2, workers=1))
    assert _kinds(out) == set()
    _rewrite(out, "test", lambda test: test.with_columns(timestamp=pl.lit(-1.0)))
    assert _kinds(out) == {"time-travel"}


def test_each_fault_of_features_is_found_alone(project: Project) -> None:
    assert _kinds(project.features) == set()
    other = project.source / "other"
    pack(PackConfig(interactions=project.source / "interactions.csv", out=other, split="random", core=2, workers=1))
    assert _kinds(other, project.features) == {"features-of-other-data"}
    rows = np.load(project.features / "image.npy")
    data = Manifest.read(project.shards).fingerprint
    for bad in (rows * np.nan, np.where(np.arange(len(rows))[:, None] == 3, 0, rows), np.ones_like(rows)):
        write_features(project.source / "bad", {"image": bad.astype(np.float32)}, data=data)
        assert _kinds(project.source / "bad") == {"unusable-features"}
    np.save(project.features / "image.npy", rows[:-1])
    assert _kinds(project.features) == {"damaged-features"}
    (project.features / "image.npy").unlink()
    assert _kinds(project.features) == {"damaged-features"}


def test_a_run_whose_inputs_changed_or_vanished_says_which(project: Project) -> None:
    assert _kinds(project.stage1) == set()
    for changed, kind in {
        project.features / "image.npy": "changed-input",
        project.clip / "open_clip_model.safetensors": "changed-input",
        project.stage1 / "recommender.safetensors": "damaged-run",
    }.items():
        whole = changed.read_bytes()
        changed.write_bytes(whole[:-4] + b"abcd")
        assert _kinds(project.stage1) == {kind}, changed
        changed.write_bytes(whole)
    for folder in (project.features, project.shards, project.clip):
        shutil.move(folder, f"{folder}-elsewhere")
        findings = _examine(project.stage1)
        assert {finding.kind for finding in findings} == {"missing-input"}
        assert str(folder) in findings[0].found
        shutil.move(f"{folder}-elsewhere", folder)


def test_an_unfinished_run_is_compared_with_what_it_began_with(project: Project) -> None:
    (project.stage1 / "metrics.json").unlink()
    config = (project.stage1 / "config.yaml").read_text()
    (project.stage1 / "config.yaml").write_text(re.sub(r"shards: .*", f"shards: {project.shards}", config))
    assert _kinds(project.stage1) == {"unfinished-run"}
    inputs = json.loads((project.stage1 / "inputs.json").read_text())
    (project.stage1 / "inputs.json").write_text(json.dumps(inputs | {"shards": "0" * 64}))
    assert _kinds(project.stage1) == {"unfinished-run", "changed-input"}


def test_servers_that_were_configured_and_do_not_answer_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not {"mlflow-unreachable", "ray-unreachable"} & _kinds()
    assert not list(tmp_path.iterdir())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
        assert {"mlflow-unreachable", "ray-unreachable"} <= _kinds()
        closed.listen()
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("create table experiments (name text)")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        assert not {"mlflow-unreachable", "ray-unreachable"} & _kinds()
