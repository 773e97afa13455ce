"""Stage 1 on tables that are cut by rows over ranks: the run of one process, from its first numbers to its files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist import cli
from ptmrec_dist.config import EvaluateConfig, PackConfig, Stage1Config, recommender_config
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.distributed import join_world, rows
from ptmrec_dist.errors import UserError
from ptmrec_dist.training import ranking_evaluation
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.inputs import open_store
from ptmrec_dist.training.stage1 import make_objective, make_trainer, train_stage1
from tests.conftest import UNTRACKED, Project
from tests.memory import largest_tensor
from tests.ranks import exit_codes_on_ranks, run_on_ranks
from tests.training.steps import kill_before_step, temporary_session

CUT = ("bpr", "vbpr")
SETTINGS: dict[str, Any] = {
    "batch_size": 100,  # 3 ranks cannot share it evenly
    "epochs": 4,
    "lr": 0.02,
    "device": "cpu",
    "tracking": UNTRACKED,
}


def _config(
    project: Project, out: Path, tables: Any = "rows", recommender: str = "bpr", dim: int = 8, **changes: Any
) -> Stage1Config:
    """Of a recommender of IDs, or of one that reads features and is evaluated on cold items, too."""
    model, features = recommender_config(recommender, dim=dim), None if recommender == "bpr" else project.features
    settings: dict[str, Any] = {"recommender": recommender, "model": model, "features": features} | SETTINGS | changes
    return Stage1Config(shards=project.shards, out=out, tables=tables, **settings)


def _assert_same_run(found: Path, expected: Path) -> None:
    """Losses, metrics and tables, up to the rounding of sums."""
    for name in ("history.jsonl", "metrics.json"):
        ours, theirs = ([json.loads(line) for line in _lines(run / name)] for run in (found, expected))
        assert len(ours) == len(theirs)
        for mine, other in zip(map(_flat, ours), map(_flat, theirs), strict=True):
            assert mine == pytest.approx(other, rel=1e-4)
    tables = load_file(expected / "recommender.safetensors")
    ours = load_file(found / "recommender.safetensors")
    assert ours.keys() == tables.keys()
    for name, table in tables.items():
        np.testing.assert_allclose(ours[name], table, rtol=1e-4, atol=1e-4, err_msg=name)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


def _flat(line: dict[str, Any]) -> dict[str, float]:
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in line.items()}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("recommender", CUT)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_on_cut_tables_is_that_of_one_process(
    tiny_project: Project, tmp_path: Path, ranks: int, recommender: str
) -> None:
    train_stage1(_config(tiny_project, tmp_path / "whole", "whole", recommender))
    run_on_ranks(ranks, train_stage1, _config(tiny_project, tmp_path / "rows", recommender=recommender))
    _assert_same_run(tmp_path / "rows", tmp_path / "whole")
    records = [load_run(tmp_path / name).record for name in ("rows", "whole")]
    assert records[0].parameters == records[1].parameters
    before = (tmp_path / "rows" / "metrics.json").read_text()
    evaluate_run(EvaluateConfig(run=tmp_path / "rows", device="cpu"))  # of whole tables, in one process
    assert _flat(json.loads((tmp_path / "rows" / "metrics.json").read_text())) == pytest.approx(
        _flat(json.loads(before))
    )


def _killed_in_epoch_3(config: Stage1Config) -> None:
    kill_before_step(10)
    train_stage1(config)


@pytest.mark.slow
@pytest.mark.parametrize("recommender", CUT)
def test_a_killed_run_resumes_to_the_digit_and_on_other_ranks_or_whole_tables(
    tiny_project: Project, tmp_path: Path, recommender: str
) -> None:
    """An epoch has 4 steps: it resumes at the third of the second one."""
    settings: dict[str, Any] = {"checkpoint_every": 6, "recommender": recommender}
    whole, same = tmp_path / "whole", tmp_path / "same"
    run_on_ranks(2, train_stage1, _config(tiny_project, whole, **settings))
    assert exit_codes_on_ranks(2, _killed_in_epoch_3, _config(tiny_project, same, **settings)) == [-9, -9]
    others = {name: shutil.copytree(same, tmp_path / name) for name in ("three", "one", "zero")}
    run_on_ranks(2, train_stage1, _config(tiny_project, same, **settings))
    for name in ("history.jsonl", "metrics.json", "recommender.safetensors"):
        assert (same / name).read_bytes() == (whole / name).read_bytes(), name
    run_on_ranks(3, train_stage1, _config(tiny_project, others["three"], **settings))
    train_stage1(_config(tiny_project, others["one"], "whole", **settings))
    run_on_ranks(2, train_stage1, _config(tiny_project, others["zero"], "whole", **settings))
    for run in others.values():
        _assert_same_run(run, whole)


@pytest.mark.slow
def test_a_run_is_continued_on_cut_tables_as_on_whole_ones(
    tiny_project: Project, tmp_path: Path, fewer: Project
) -> None:
    before = tmp_path / "before"
    train_stage1(_config(fewer, before, "whole"))
    settings: dict[str, Any] = {"from_run": before, "epochs": 1}
    train_stage1(_config(tiny_project, tmp_path / "whole", "whole", **settings))
    run_on_ranks(3, train_stage1, _config(tiny_project, tmp_path / "rows", **settings))
    _assert_same_run(tmp_path / "rows", tmp_path / "whole")


@pytest.fixture(scope="module")
def fewer(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project without the first items and users: the others have smaller indices."""
    folder = tmp_path_factory.mktemp("fewer")
    taken = pl.read_csv(tiny_project.source / "interactions.csv")
    gone = {"user_id": [f"u{user}" for user in range(15)], "item_id": [f"i{item}" for item in range(5)]}
    for column, ids in gone.items():
        taken = taken.filter(~pl.col(column).is_in(ids))
    taken.write_csv(folder / "interactions.csv")
    pack(PackConfig(interactions=folder / "interactions.csv", out=folder / "shards", core=0, split="leave_one_out"))
    return replace(tiny_project, shards=folder / "shards")


USERS, ITEMS, WIDTH = 3000, 3600, 64


@pytest.fixture(scope="module")
def long_tables(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Many users and items, few of which have a positive in validation, and features as wide as embeddings."""
    folder = tmp_path_factory.mktemp("long")
    users, items = np.arange(2 * ITEMS) % USERS, np.arange(2 * ITEMS) % ITEMS
    pl.DataFrame({"user_id": users, "item_id": items}).write_csv(folder / "interactions.csv")
    pack(PackConfig(interactions=folder / "interactions.csv", out=folder / "shards", core=0, split="random"))
    np.save(folder / "image.npy", np.random.default_rng(0).random((ITEMS, WIDTH), dtype=np.float32))
    words = ["--shards", str(folder / "shards"), "--image_npy", str(folder / "image.npy")]
    assert cli.run("features", [*words, "--out", str(folder / "features")]) == 0
    return replace(tiny_project, shards=folder / "shards", features=folder / "features")


def _largest_tensors(config: Stage1Config) -> dict[str, int]:
    """Bytes of the largest tensor in each phase of a run on this rank."""
    rows._BLOCK = 256
    ranking_evaluation.MOST_USERS = 64
    dataset, world = Dataset(config.shards), join_world("cpu")
    made: list[Any] = []
    store = open_store(config, dataset)
    found = {"building": largest_tensor(lambda: made.append(make_objective(config, dataset, store, world)))}
    with temporary_session(config, world) as session:
        evaluation = ranking_evaluation.RankingEvaluation(config, session, made[0], dataset)
        trainer = make_trainer(config, session, made[0], dataset, evaluation)
        rows_G = torch.arange(100)
        window = [trainer.batches.batch(rows_G, torch.Generator().manual_seed(0))]  # type: ignore[attr-defined]
        found["a step"] = largest_tensor(lambda: trainer.train_step(window))
        found["evaluating"] = largest_tensor(lambda: evaluation.measure(trainer.engine))
        found["keeping"] = largest_tensor(evaluation.keep)
        found["a checkpoint"] = largest_tensor(lambda: trainer._write(session.run.folder))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recommender", CUT)
def test_no_rank_ever_makes_a_tensor_as_large_as_a_table(
    long_tables: Project, tmp_path: Path, recommender: str
) -> None:
    """Reading is left out: what is read of a file are pages that the system maps. Vectors of vbpr have twice the width."""
    config = _config(
        long_tables, tmp_path / "run", recommender=recommender, dim=WIDTH if recommender == "bpr" else WIDTH // 2
    )
    own = 4 * WIDTH * (ITEMS // 3)
    for found in run_on_ranks(3, _largest_tensors, config):
        assert set(found) == {"building", "a step", "evaluating", "keeping", "a checkpoint"}
        assert max(found.values()) <= own, found
    alone = run_on_ranks(1, _largest_tensors, config)[0]
    assert min(value for name, value in alone.items() if name in ("building", "a step")) >= 2.5 * own


@pytest.mark.parametrize("recommender", [name for name in RECOMMENDERS if name not in CUT])
def test_recommenders_that_read_more_than_rows_are_refused_in_one_line(
    tiny_project: Project, tmp_path: Path, recommender: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shards", str(tiny_project.shards), "--features", str(tiny_project.features)]
    arguments += ["--recommender", recommender, "--tables", "rows", "--out", str(tmp_path / "run")]
    assert cli.run("stage1", arguments) == 2
    expected = f"expected whole with {recommender}, which reads more than a batch's rows"
    assert capsys.readouterr().err.splitlines() == [f"ptmrec stage1: error: tables: got 'rows', {expected}"]
    assert not (tmp_path / "run").exists()


def test_factors_of_all_rows_are_refused_as_a_start(tiny_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init: got 'als', expected none with --tables rows"):
        _config(tiny_project, tmp_path / "run", init="als")


def test_features_to_train_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_features: got True, expected False with --tables rows"):
        _config(tiny_project, tmp_path / "run", recommender="vbpr", train_features=True)
