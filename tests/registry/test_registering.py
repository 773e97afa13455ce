"""Registering runs, on SQLite and on a server with PostgreSQL: lineage, whole and safe files, refusals."""

import importlib.util
import pickle
import pickletools
import py_compile
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ptmrec_dist.config import (
    EncoderConfig,
    MergeConfig,
    RegisterConfig,
    Stage1Config,
    TrackingConfig,
)
from ptmrec_dist.config.recommenders import BPRConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.merge import merge
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.registering import register
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import RECOMMENDER_FILE, read_record, write_record
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import REPOSITORY, UNTRACKED
from tests.data.small_catalogue import write_catalogue
from tests.registry.films import (
    in_base64,
)
from tests.tiny_clip import write_tiny_clip


def is_pickle(data: bytes) -> bool:
    """Whether bytes read as a pickle from the first opcode to a STOP."""
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(data))
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, struct.error):
        return False


HIDES_PICKLES = {b"PK\x03\x04": "zip, as torch.save writes", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x93NUMPY": "npy"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_would_be_noticed(protocol):
    assert is_pickle(pickle.dumps({"weights": [1.5, "x"]}, protocol))
    assert not is_pickle(b'{"weights": 1}')


def test_registered_model_has_no_pickle_and_stands_alone(catalogue, registry, tmp_path):
    model = Path(mlflow.artifacts.download_artifacts("models:/films@champion", dst_path=str(tmp_path)))
    (wheel,) = model.glob("artifacts/wheels/*.whl")
    shutil.unpack_archive(wheel, wheel.with_suffix(""), "zip")  # its files are judged, not the archive
    wheel.unlink()
    # A server that read this store has left compiled code there, which loading throws away.
    paths = [path for path in model.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    files = {path: path.read_bytes() for path in paths}
    assert {path.name for path in files} >= {"open_clip_model.safetensors", "encoder.safetensors", "MLmodel"}
    for path, data in files.items():
        assert not is_pickle(data), path
        assert not [kind for magic, kind in HIDES_PICKLES.items() if data.startswith(magic)], path
    assert {path.suffix for path, data in files.items() if b"\0" in data} == {".safetensors", ".parquet"}
    for folder in (catalogue.shards, catalogue.root / "clip", catalogue.root / "features"):
        folder.rename(folder.with_suffix(".away"))
    try:
        picture = in_base64(Image.new("RGB", (8, 8), "red"), "PNG")
        answer = load_model(str(model)).predict(
            pd.DataFrame({"user_id": ["1"], "image": [picture], "text": ["a film"]})
        )
        assert np.isfinite(answer["score"]).all()
    finally:
        for folder in (catalogue.shards, catalogue.root / "clip", catalogue.root / "features"):
            folder.with_suffix(".away").rename(folder)


def test_version_carries_its_lineage(catalogue, registry):
    tags = registry.get_model_version_by_alias("films", "champion").tags
    record = load_run(catalogue.stage2).record
    assert tags["run"] == record.fingerprint
    assert tags["data"] == Dataset(catalogue.shards).fingerprint
    assert tags["features"] == record.features["fingerprint"]
    assert tags["stage1"] == load_run(catalogue.stage1).record.fingerprint
    assert tags["encoder"] == load_backbone(EncoderConfig(model=str(catalogue.root / "clip"))).fingerprint
    assert tags["recommender"] == "vbpr"
    assert tags["test/recall_at_20"] == "0.125"
    assert tags["validation/recall_at_20"] == "0.25"


def test_version_names_every_run_that_its_run_was_made_from(catalogue, registry, tmp_path):
    record, other = read_record(catalogue.stage2), read_record(catalogue.stage1)
    shutil.copytree(catalogue.stage2, tmp_path / "run")
    names = ("stage2", "source", "teacher", "previous")
    made = {name: {"path": str(catalogue.stage1), "fingerprint": other.fingerprint[:-1] + name[0]} for name in names}
    write_record(tmp_path / "run", replace(record, **made))
    register(RegisterConfig(run=tmp_path / "run", name="made"))
    tags = registry.get_model_version_by_alias("made", "candidate").tags
    assert {name: tags.get(name) for name in names} == {name: found["fingerprint"] for name, found in made.items()}
    assert tags["graph_features"] == record.graph_features["fingerprint"]


def test_version_of_a_merged_data_set_names_its_sources(catalogue, registered, tmp_path):
    other = replace(write_catalogue(tmp_path / "other"), split="cold_items", core=0)
    pack(other)
    merge(MergeConfig(sources=(catalogue.shards, other.out), names=("films", "others"), out=tmp_path / "pool"))
    train_stage1(
        Stage1Config(
            shards=tmp_path / "pool", out=tmp_path / "run", recommender="bpr", model=BPRConfig(dim=8), epochs=0,
            device="cpu", tracking=UNTRACKED,
        )
    )  # fmt: skip
    register(RegisterConfig(run=tmp_path / "run", name="pooled"))
    tags = registered.get_model_version_by_alias("pooled", "candidate").tags
    assert tags["data"] == Dataset(tmp_path / "pool").fingerprint
    assert tags["data.films"] == Dataset(catalogue.shards).fingerprint
    assert tags["data.others"] == Dataset(other.out).fingerprint


def _head() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return found.stdout.strip()


def test_version_names_the_commit_and_the_mlflow_run_that_it_comes_from(catalogue, registry, tmp_path):
    with Tracker.start(TrackingConfig(), name="a", params={}, tags={}, active=True) as tracker:
        pass
    shutil.copytree(catalogue.stage1, tmp_path / "run")
    write_record(tmp_path / "run", replace(read_record(tmp_path / "run"), mlflow_run=tracker.run_id))
    ended = registry.get_run(tracker.run_id).info.end_time
    before = _head()
    register(RegisterConfig(run=tmp_path / "run", name="tracked"))
    heads = {before, _head()}  # somebody may commit while the tests run
    version = registry.get_model_version_by_alias("tracked", "candidate")
    assert version.run_id == tracker.run_id
    assert version.tags.get("git_commit", "").removesuffix("-dirty") in heads
    assert registry.get_run(tracker.run_id).info.end_time == ended


def test_alias_moves_to_the_new_version(catalogue, registry):
    before = registry.get_model_version_by_alias("films", "champion").version
    register(RegisterConfig(run=catalogue.stage1, name="films", alias="moving"))
    register(RegisterConfig(run=catalogue.stage2, name="films", alias="moving"))
    assert int(registry.get_model_version_by_alias("films", "moving").version) == int(before) + 2
    assert registry.get_model_version_by_alias("films", "champion").version == before


def test_version_has_a_signature_and_answers_its_example(registry):
    model = load_model("models:/films@champion")
    assert model.metadata.signature.inputs.input_names() == ["user_id", "history", "item_id", "image", "text"]
    example = model.input_example
    assert example is not None
    assert len(model.predict(example, params={"top_k": 3})) == 3


@pytest.fixture
def stored_file(registry, request):
    """Finds where the registry keeps a file of a version."""

    def find(version, name):
        location = registry.get_logged_model(version.source.split("/")[-1]).artifact_location
        if location.startswith("mlflow-artifacts:"):
            server = request.getfixturevalue("mlflow_server")
            folder = server.artifacts / location.removeprefix("mlflow-artifacts:").lstrip("/")
        else:
            folder = Path(location.removeprefix("file://"))
        (found,) = folder.rglob(name)
        return found

    return find


@pytest.mark.parametrize("name", ["tables.safetensors", "pyfunc_entry.py", "MLmodel", "digests.json"])
def test_model_that_was_changed_after_it_was_registered_is_refused(name, catalogue, registry, stored_file):
    register(RegisterConfig(run=catalogue.ids_only, name=f"changed {name}"))
    version = registry.get_model_version_by_alias(f"changed {name}", "candidate")
    stored = stored_file(version, name)
    before = stored.read_bytes()
    stored.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match="changed; register the run again") as raised:
        load_model(f"models:/changed {name}@candidate")
    assert version.tags["digest"][:12] in str(raised.value)
    stored.write_bytes(before)
    load_model(f"models:/changed {name}@candidate")


def test_compiled_code_in_the_store_neither_runs_nor_counts(catalogue, registry, stored_file, tmp_path):
    register(RegisterConfig(run=catalogue.ids_only, name="compiled"))
    version = registry.get_model_version_by_alias("compiled", "candidate")
    (tmp_path / "planted.py").write_text("raise RuntimeError('planted code ran')")
    planted = importlib.util.cache_from_source(str(stored_file(version, "pyfunc_entry.py")))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(tmp_path / "planted.py"), planted, invalidation_mode=unchecked)
    load_model("models:/compiled@candidate")


def test_model_that_is_served_from_a_folder_checks_the_digests_in_it(catalogue, registered, tmp_path):
    model = Path(mlflow.artifacts.download_artifacts("models:/ids@candidate", dst_path=str(tmp_path)))
    served = model / "artifacts" / "model"
    tables = (served / "tables.safetensors").read_bytes()
    (served / "tables.safetensors").write_bytes(tables[:-1] + bytes([tables[-1] ^ 1]))
    with pytest.raises(UserError, match=r"tables\.safetensors is .*, expected"):
        ServedModel(served)
    (served / "tables.safetensors").write_bytes(tables)
    (served / "more.txt").write_text("an unregistered file")
    with pytest.raises(UserError, match=r"more\.txt is .*expected no such file"):
        ServedModel(served)


@pytest.mark.parametrize(("name", "alias"), [("a/b", "x"), ("a", "latest"), ("a", "v1"), ("a", "x y"), ("", "x")])
def test_names_that_mlflow_refuses_are_refused_before_anything_is_written(name, alias, catalogue, empty_registry):
    with pytest.raises(UserError, match="expected"):
        register(RegisterConfig(run=catalogue.stage2, name=name, alias=alias))
    assert empty_registry.search_registered_models() == []


def test_run_of_other_data_features_or_encoder_is_refused(catalogue, empty_registry, tmp_path):
    record = read_record(catalogue.stage2)
    write_tiny_clip(tmp_path / "other-clip", seed=1)
    changes = {
        "data": record.data | {"fingerprint": "0" * 64},
        "features": record.features | {"fingerprint": "0" * 64},
        "encoder": record.encoder | {"model": str(tmp_path / "other-clip")},
    }
    for key, value in changes.items():
        run = tmp_path / key
        shutil.copytree(catalogue.stage2, run)
        write_record(run, replace(record, **{key: value}))
        with pytest.raises(UserError) as raised:
            register(RegisterConfig(run=run, name="films"))
        assert getattr(record, key)["fingerprint"][:12] in str(raised.value)
        if key != "encoder":
            assert "0" * 12 in str(raised.value)
    assert empty_registry.search_registered_models() == []


def test_model_with_weights_that_are_not_finite_is_not_registered(catalogue, empty_registry, tmp_path):
    shutil.copytree(catalogue.ids_only, tmp_path / "broken")
    record = read_record(tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / RECOMMENDER_FILE)
    weights["user_embeddings.weight"][-1, 0] = torch.nan
    save_file(weights, tmp_path / "broken" / RECOMMENDER_FILE)
    write_record(tmp_path / "broken", record)
    with pytest.raises(UserError, match="NaN"):
        register(RegisterConfig(run=tmp_path / "broken", name="films"))
    assert empty_registry.search_registered_models() == []
