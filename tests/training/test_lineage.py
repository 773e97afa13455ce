"""A wrong model must be impossible: inputs that have changed are refused by name, and what was moved as a whole still works."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, FeaturesConfig, PackConfig, Stage1Config, recommender_config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.experiment.finished import read_setting
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import read_record
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import STAGE1, UNTRACKED, Project
from tests.ranks import exit_codes_on_ranks
from tests.training.steps import kill_before_step

UNTRACKED_FLAGS = ("--tracking.enabled", "false", "--device", "cpu")


def _pack(project: Project, out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "items": project.source / "items.csv",
        "interactions": project.source / "interactions.csv",
        "out": out,
        "split": "cold_items",
        "core": 2,
        "num_shards": 8,
        "workers": 1,
    }
    pack(PackConfig(**(settings | changes)))
    return out


def _features(project: Project, shards: Path, out: Path) -> Path:
    extract_features(
        FeaturesConfig(shards=shards, out=out, encoder=EncoderConfig(model=str(project.clip)), device="cpu")
    )
    return out


def _stage1(shards: Path, out: Path, **changes: Any) -> Stage1Config:
    settings: dict[str, Any] = {
        "shards": shards,
        "out": out,
        "recommender": "bpr",
        "epochs": 3,
        "batch_size": 64,
        "checkpoint_every": 1,
        "model": recommender_config(changes.get("recommender", "bpr"), dim=8),
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return Stage1Config(**(settings | changes))


def _stage1_killed(config: Stage1Config) -> None:
    kill_before_step(8)
    train_stage1(config)


def _stage2_killed(arguments: list[str]) -> None:
    kill_before_step(3)
    cli.run("stage2", arguments)


def _run(command: str, *arguments: object) -> int:
    return cli.run(command, [*map(str, arguments), *(UNTRACKED_FLAGS if command != "register" else ())])


@pytest.mark.slow
def test_shards_packed_anew_between_interruption_and_resume_are_refused_by_name(
    tiny_project: Project, tmp_path: Path
) -> None:
    shards = _pack(tiny_project, tmp_path / "shards")
    before = Dataset(shards).fingerprint
    config = _stage1(shards, tmp_path / "run")
    assert exit_codes_on_ranks(1, _stage1_killed, config) == [-9]
    _pack(tiny_project, shards, seed=5)
    after = Dataset(shards).fingerprint
    message = f"shards: got {after[:12]}, but {tmp_path / 'run'} was started with {before[:12]}; give that or choose"
    with pytest.raises(UserError, match=message):
        train_stage1(config)
    _pack(tiny_project, shards, num_shards=3)  # the same content, divided in another way
    train_stage1(config)
    assert read_record(tmp_path / "run").data["fingerprint"] == before


def test_a_complete_run_over_changed_inputs_does_not_say_that_nothing_is_to_do(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, features = _pack(tiny_project, tmp_path / "shards"), tmp_path / "features"
    _features(tiny_project, shards, features)
    config = _stage1(shards, tmp_path / "run", recommender="vbpr", features=features)
    train_stage1(config)
    train_stage1(config)
    assert "is complete; nothing to do" in capsys.readouterr().out
    table = np.load(features / "image.npy")
    table[0, 0] += 1
    np.save(features / "image.npy", table)
    with pytest.raises(UserError, match=r"the arrays of .* are [0-9a-f]{12}, but its manifest lists [0-9a-f]{12}"):
        train_stage1(config)
    _pack(tiny_project, shards, seed=5)
    _features(tiny_project, shards, features)
    with pytest.raises(UserError, match=r"shards: got .* was started with"):
        train_stage1(config)


@pytest.mark.slow
def test_a_stage_1_trained_anew_under_a_stage_2_is_refused_by_name(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1 = tmp_path / "stage1"
    settings: dict[str, Any] = {"recommender": "vbpr", "features": tiny_project.features}
    train_stage1(_stage1(tiny_project.shards, stage1, **settings))
    before = read_record(stage1).fingerprint
    arguments = ["--stage1", str(stage1), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch_size", "12"]
    arguments += ["--checkpoint_every", "1", *UNTRACKED_FLAGS]
    assert exit_codes_on_ranks(1, _stage2_killed, arguments) == [-9]
    shutil.rmtree(stage1)
    train_stage1(_stage1(tiny_project.shards, stage1, seed=9, **settings))
    after = read_record(stage1).fingerprint
    assert cli.run("stage2", arguments) == 2
    line = f"stage1: got {after[:12]}, but {tmp_path / 'run'} was started with {before[:12]}; give that or choose"
    assert line in capsys.readouterr().err
    shutil.rmtree(stage1)
    train_stage1(_stage1(tiny_project.shards, stage1, **settings))
    assert read_record(stage1).fingerprint == before  # the same weights from the same inputs
    assert cli.run("stage2", arguments) == 0
    assert "resuming at step 3" in capsys.readouterr().out


@pytest.mark.slow
def test_stage_2_over_the_same_content_in_other_shards_starts_its_epoch_again(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that were done of another order would leave out some items and repeat others."""
    shards = _pack(tiny_project, tmp_path / "shards")
    arguments = ["--stage1", str(tiny_project.stage1), "--shards", str(shards), "--out", str(tmp_path / "run")]
    arguments += ["--epochs", "1", "--batch_size", "12", "--checkpoint_every", "1", *UNTRACKED_FLAGS]
    assert exit_codes_on_ranks(1, _stage2_killed, arguments) == [-9]
    _pack(tiny_project, shards, num_shards=3)
    assert cli.run("stage2", arguments) == 0
    assert (
        "the epoch starts again because its order depends on ranks and shards (3 steps are repeated)"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_ranks_that_are_kept_are_those_of_the_run_that_is_there(tiny_project: Project, tmp_path: Path) -> None:
    kept = tmp_path / "ranks"
    shards = _pack(tiny_project, tmp_path / "shards")
    for seed in (0, 5):
        _pack(tiny_project, shards, seed=seed)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        train_stage1(_stage1(shards, tmp_path / "run"))
        cached = read_setting("a", "b", [tmp_path / "run"], kept=kept).runs[0].ranked["test"]
        fresh = read_setting("a", "b", [tmp_path / "run"]).runs[0].ranked["test"]
        for column in ("users", "items", "ranks"):
            np.testing.assert_array_equal(getattr(cached, column), getattr(fresh, column))
    modified = (kept / "run" / "test.parquet").stat().st_mtime_ns
    read_setting("a", "b", [tmp_path / "run"], kept=kept)
    assert (kept / "run" / "test.parquet").stat().st_mtime_ns == modified


def test_the_same_rows_in_other_shards_are_the_same_data(tiny_project: Project, tmp_path: Path) -> None:
    first = Dataset(tiny_project.shards)
    other = Dataset(_pack(tiny_project, tmp_path / "three", num_shards=3))
    assert other.fingerprint == first.fingerprint
    assert other.manifest.layout != first.manifest.layout
    store = open_features(tiny_project.features, other.fingerprint, other.num_items)
    again = open_features(
        _features(tiny_project, other.folder, tmp_path / "features"), first.fingerprint, first.num_items
    )
    for modality, table in store.tables.items():
        np.testing.assert_allclose(again.tables[modality], table, atol=1e-6)
    given = [_pack(tiny_project, tmp_path / f"{seed}", split="leave_one_out", seed=seed) for seed in (0, 1)]
    assert Dataset(given[0]).fingerprint == Dataset(given[1]).fingerprint != first.fingerprint


def test_one_image_that_is_another_makes_other_data(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.source / "images", tmp_path / "images")
    shutil.copy(tmp_path / "images" / "0.jpg", tmp_path / "images" / "3.jpg")
    shutil.copy(tiny_project.source / "items.csv", tmp_path)
    other = _pack(tiny_project, tmp_path / "packed", items=tmp_path / "items.csv")
    assert Dataset(other).fingerprint != Dataset(tiny_project.shards).fingerprint


def test_a_table_swapped_under_a_manifest_is_found_when_it_is_read(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    dataset = Dataset(tmp_path / "shards")
    path = tmp_path / "shards" / "interactions" / "train.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    with pytest.raises(UserError, match=r"train\.parquet is [0-9a-f]{12}, but the manifest lists [0-9a-f]{12}"):
        dataset.interactions("train")
    with pytest.raises(UserError, match=r"train\.parquet is"):
        train_stage1(_stage1(tmp_path / "shards", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_item_swapped_in_a_whole_tar_is_found_when_it_is_read(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    tar = tmp_path / "shards" / "shard-000000.tar"
    swapped = tar.read_bytes().replace(b"a red thing", b"a new thing")
    assert swapped != tar.read_bytes()
    tar.write_bytes(swapped)
    with pytest.raises(Fault, match=r"item \d+ is not the one that was packed"):
        _features(tiny_project, tmp_path / "shards", tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_weights_swapped_under_a_record_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.stage1, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "recommender.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "run" / "recommender.safetensors")
    with pytest.raises(UserError, match=r"the files of .* are [0-9a-f]{12}, but its run\.json says [0-9a-f]{12}"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}'])
@pytest.mark.parametrize("file", ["run.json", "metrics.json", "config.yaml"])
def test_a_damaged_record_of_a_run_is_refused_by_its_path(
    file: str, damage: bytes, tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_project.stage1, run)
    (run / file).write_bytes(damage)
    shards, features = ("--shards", str(tiny_project.shards)), ("--features", str(tiny_project.features))
    commands = {
        "run.json": [["evaluate", "--run", str(run), *shards], ["report", "--runs", str(run), *shards]],
        "metrics.json": [["report", "--runs", str(run), *shards, "--out", str(tmp_path / "page.html")]],
        "config.yaml": [["stage1", *shards, *features, "--out", str(run), *UNTRACKED_FLAGS]],
    }
    for command in commands[file]:
        assert cli.main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ptmrec")]
        assert str(run) in line


def test_a_folder_that_does_not_say_what_it_was_made_from_is_not_resumed(tiny_project: Project, tmp_path: Path) -> None:
    shutil.copytree(tiny_project.stage1, tmp_path / "run")
    (tmp_path / "run" / "inputs.json").unlink()
    project = {"recommender": "vbpr", "features": tiny_project.features, "device": "auto"}
    config = _stage1(tiny_project.shards, tmp_path / "run", **project, **STAGE1)
    with pytest.raises(
        UserError, match=r"does not record what it was made from \(no inputs\.json\); choose another --out"
    ):
        train_stage1(config)


@pytest.fixture
def moved(tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of shards, encoder, features and both stages, made with relative paths, then moved as a whole."""
    tree = tmp_path / "before" / "tree"
    tree.mkdir(parents=True)
    monkeypatch.chdir(tree)
    shutil.copytree(tiny_project.clip, "clip")
    _pack(tiny_project, Path("shards"))
    assert cli.run("features", ["--shards", "shards", "--encoder.model", "clip", "--out", "features/a"]) == 0
    first = ("--shards", "shards", "--features", "features/a", "--epochs", 2, "--batch_size", 64, "--model.dim", 8)
    assert _run("stage1", *first, "--out", "runs/a") == 0
    assert _run("stage2", "--stage1", "runs/a", "--out", "runs/b", "--epochs", 1, "--batch_size", 12) == 0
    there = tmp_path / "after"
    monkeypatch.chdir(tmp_path)
    tree.rename(there)
    return there


@pytest.mark.slow
def test_a_tree_that_was_moved_evaluates_registers_and_starts_stage_2(
    moved: Path, empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_sqlite, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    before = (moved / "runs" / "b" / "metrics.json").read_text()
    assert cli.run("evaluate", ["--run", str(moved / "runs" / "b"), "--device", "cpu"]) == 0
    assert (moved / "runs" / "b" / "metrics.json").read_text() == before
    assert _run("register", "--run", moved / "runs" / "b", "--name", "moved") == 0
    second = ("--stage1", "after/runs/a", "--epochs", 1, "--batch_size", 12)
    assert _run("stage2", *second, "--out", "after/runs/c") == 0
    assert _run("stage2", *second, "--out", "after/runs/b") == 0  # complete, from where it is now
    assert json.loads((moved / "runs" / "c" / "metrics.json").read_text()) == json.loads(before)


def test_a_link_a_copy_and_a_run_that_was_moved_alone_find_their_inputs(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(moved / "runs" / "b")
    shutil.copytree(moved, tmp_path / "copy")
    alone = tmp_path / "elsewhere" / "deep" / "b"
    shutil.copytree(moved / "runs" / "b", alone)
    expected = {tmp_path / "link": moved, tmp_path / "copy" / "runs" / "b": tmp_path / "copy"}
    for run, tree in expected.items():
        assert load_run(run).dataset.folder == tree / "shards"
    with pytest.raises(UserError) as raised:
        load_run(alone)
    there = tmp_path / "before" / "tree" / "shards"
    assert str(raised.value) == f"shards: no files at {there}, where {alone} found them; give their folder by --shards"


@pytest.mark.slow
def test_each_input_that_is_absent_is_named_with_the_option_that_helps(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, out = tmp_path / "elsewhere" / "deep" / "a", tmp_path / "c"
    shutil.copytree(moved / "runs" / "a", alone)
    given: list[str] = []
    for name, folder in (("shards", "shards"), ("features", "features/a"), ("encoder", "clip")):
        arguments = ["--stage1", str(alone), "--out", str(out), "--epochs", "1", "--batch_size", "12", *given]
        assert cli.run("stage2", [*arguments, *UNTRACKED_FLAGS]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{name}: no files at {tmp_path}/before/tree/{folder}, " in line
        assert line.endswith(f"give their folder by --{name}")
        assert not out.exists()
        given += [f"--{name}", str(moved / folder)]
    arguments = ["--stage1", str(alone), "--out", str(out), "--epochs", "1", "--batch_size", "12", *given]
    assert cli.run("stage2", [*arguments, *UNTRACKED_FLAGS]) == 0
    assert cli.run("evaluate", ["--run", str(alone), *given, "--device", "cpu"]) == 0
    assert cli.run("report", ["--runs", str(alone), *given, "--out", str(tmp_path / "page.html")]) == 0


def test_the_encoder_of_a_run_that_is_an_encoder_is_named_where_it_is_absent(moved: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "deep" / "b"
    shutil.copytree(moved / "runs" / "b", alone)
    message = f"encoder: no files at {tmp_path}/before/tree/clip, where {alone} found them"
    with pytest.raises(UserError, match=f"^{re.escape(message)}; bring them back or link to them there$"):
        load_backbone(EncoderConfig(model=str(alone)))


def test_an_input_that_is_given_must_be_the_recorded_one(tiny_project: Project, moved: Path, tmp_path: Path) -> None:
    from ptmrec_dist.config import ReadsRun

    other = _pack(tiny_project, tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"shards: .*other is [0-9a-f]{12}, but .* was trained on [0-9a-f]{12}"):
        load_run(moved / "runs" / "b", ReadsRun(shards=other))
    features = _features(replace(tiny_project, clip=moved / "clip"), moved / "shards", tmp_path / "same")
    assert load_run(moved / "runs" / "b", ReadsRun(features=features)).features["image"].shape[0] > 0
