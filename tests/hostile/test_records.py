"""Manifests, lineage, checkpoints, locks and registered models with any content: read as they are, or one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from ptmrec_dist.config import DoctorConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features, read_feature_manifest
from ptmrec_dist.doctor.command import examine
from ptmrec_dist.encoders.sources.loading import load_backbone_of, save_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import lock_file, locked
from ptmrec_dist.serving.digests import FILE_NAME as DIGESTS
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.model import ServedModel
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.checkpoint import Checkpoints, TrainState
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import read_record
from tests.conftest import Project
from tests.hostile.cases import damaged, for_all, nothing_else_in, refused_in_one_line, with_other_values
from tests.training.test_checkpoint import ALONE


def _any_content(path: Path) -> st.SearchStrategy[bytes]:
    """A file with other bytes, or well-formed JSON with other values."""
    original = path.read_bytes()
    if path.suffix != ".json":
        return damaged([original])
    other = with_other_values(json.loads(original)).map(lambda value: json.dumps(value).encode())
    return st.one_of(damaged([original]), other, other, st.just(b"[" * 100_000))


def _read_all(shards: Path) -> None:
    data = Dataset(shards)
    for part in data.parts:
        data.interactions(part)
    assert len(data.item_ids) == len(data.texts) == data.num_items
    assert len(data.user_ids) == data.num_users
    assert data.content
    assert len(data.has("image")) == data.num_items
    data.sequences("train")


def _refuses(folder: Path, file: str, read: Callable[[], object], cases: int) -> None:
    """Reading with any content of the file gives something or one line, and the doctor always gives a report."""
    path = folder / file
    original = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with nothing_else_in(folder.parent), nothing_else_in(folder), refused_in_one_line():
            read()
        report = examine(DoctorConfig(paths=(folder,)))
        assert all(len(finding.found.splitlines()) == 1 for finding in report.findings)

    for_all(_any_content(path), check, cases)
    path.write_bytes(original)


def test_manifests_and_lineage_of_any_content_are_refused_in_one_line(
    cases: int, tiny_project: Project, tmp_path: Path
) -> None:
    shards, features, run = (tmp_path / name for name in ("shards", "features", "stage1"))
    for source, copy in ((tiny_project.shards, shards), (tiny_project.features, features), (tiny_project.stage1, run)):
        shutil.copytree(source, copy)
    data = Dataset(shards)
    _refuses(shards, "manifest.json", lambda: _read_all(shards), cases)
    _refuses(
        features,
        "manifest.json",
        lambda: open_features(features, read_feature_manifest(features).data, data.num_items),
        cases,
    )
    _refuses(run, "run.json", lambda: read_record(run), cases)
    _refuses(run, "recommender.safetensors", lambda: load_run(run), cases)
    (run / "metrics.json").unlink()
    _refuses(run, "inputs.json", lambda: None, cases)


def test_checkpoints_of_any_content_are_read_or_passed_over(cases: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (5, 10):
        checkpoints.save(TrainState(total_steps=step), lambda folder: (folder / "w").write_text("w") and None, ALONE)
    loop = tmp_path / "c/step-000000010/loop.json"

    def check(content: bytes) -> None:
        loop.write_bytes(content)
        found = checkpoints.latest()
        assert found is not None
        assert isinstance(found[1].epoch, int)
        assert isinstance(found[1].history, list)

    for_all(_any_content(loop), check, cases)


def test_locks_of_any_content_are_respected_or_refused(cases: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out):
        content = _any_content(lock_file(out))

    def check(data: bytes) -> None:
        lock_file(out).write_bytes(data)
        with refused_in_one_line(), locked(out):
            pass
        lock_file(out).unlink(missing_ok=True)

    for_all(content, check, cases)


@pytest.mark.filterwarnings("ignore")
def test_registered_models_with_any_files_answer_or_are_refused(
    cases: int, tiny_project: Project, tmp_path: Path
) -> None:
    folder, run = tmp_path / "model", load_run(tiny_project.stage1)
    folder.mkdir()
    write_tables(folder, run, run.record.modalities, "exact", {})
    assert run.record.encoder is not None
    save_backbone(load_backbone_of(run.record.encoder), folder / "encoder")
    write_digests(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    small = [path for path in files if path.suffix in (".json", ".parquet") or path.name == "tables.safetensors"]

    def check(case: tuple[Path, bytes, bool]) -> None:
        path, content, consistent = case
        path.write_bytes(content)
        if consistent and path.name != DIGESTS:  # of somebody who can write the digests, too
            write_digests(folder)
        with nothing_else_in(tmp_path), refused_in_one_line():
            try:
                ServedModel(folder, new_items=False).answer({"user_id": ["u1"]})
            finally:
                path.write_bytes(files[path])
                (folder / DIGESTS).write_bytes(files[folder / DIGESTS])

    def content_of(path: Path) -> st.SearchStrategy[tuple[Path, bytes, bool]]:
        return st.tuples(st.just(path), _any_content(path), st.booleans())

    for_all(st.sampled_from(small).flatmap(content_of), check, cases)


def test_a_features_manifest_cannot_name_arrays_outside_its_folder(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.features, tmp_path / "features")
    np.save(tmp_path / "secret.npy", np.zeros((60, 2), np.float32))
    manifest = json.loads((tmp_path / "features/manifest.json").read_text())
    manifest["widths"] = {"../secret": 2}
    (tmp_path / "features/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"'\.\./secret', expected image and text"):
        read_feature_manifest(tmp_path / "features")


@pytest.mark.parametrize("name", ["pipe:touch hacked", "http:x.tar", "../x.tar", "", ".", "x\n.tar"])
def test_a_shard_is_the_name_of_a_file_and_never_a_command(
    name: str, tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset runs what follows `pipe:` in a relative path."""
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    monkeypatch.chdir(tmp_path / "shards")
    manifest = json.loads(Path("manifest.json").read_text())
    manifest["shards"][0]["name"] = name
    Path("manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the name of a file in it"):
        Dataset(Path("."))


def test_what_a_manifest_says_stays_on_the_line_of_the_message(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    path = tmp_path / "shards/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["interactions/train.parquet"] = "a\rb\n\x1b[2J\u2028"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"but the manifest lists a b  \[2J : it was changed"):
        Dataset(tmp_path / "shards").interactions("train")


def test_a_manifest_without_interactions_to_train_on_is_refused(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    path = tmp_path / "shards/manifest.json"
    manifest = json.loads(path.read_text())
    for parts in ({}, {"validation": 40}):
        path.write_text(json.dumps(manifest | {"interactions": parts}))
        with pytest.raises(UserError, match=r"not written by `ptmrec pack` \(.*no interactions to train on"):
            Dataset(tmp_path / "shards")
