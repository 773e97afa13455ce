"""What users took is left out of their lists, whichever part of the split it is in, and is apart from what was trained on."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist import cli
from ptmrec_dist.config import Stage1Config, recommender_config
from ptmrec_dist.registry.held_out import compare_on
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.digests import FILE_NAME, write_digests
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED

USERS, ITEMS = 30, 20
DIM = 8


@pytest.fixture(scope="module", params=["bpr", "sasrec"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """An untrained run of each kind, with each user's latest two items held out."""
    folder, rng = tmp_path_factory.mktemp("taken"), np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", t) for u in range(USERS) for t, i in enumerate(rng.permutation(ITEMS)[:6])]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    command = ["pack", "--interactions", f"{folder}/log.csv", "--split", "leave_one_out", "--core", "0"]
    assert cli.main([*command, "--out", f"{folder}/shards"]) == 0
    settings = {"recommender": request.param, "model": recommender_config(request.param, dim=DIM)}
    where = {"shards": folder / "shards", "out": folder / "run"}
    train_stage1(Stage1Config(**where, epochs=0, device="cpu", tracking=UNTRACKED, **settings))
    return load_run(folder / "run")


@pytest.fixture(scope="module")
def folder(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_tables(folder, run, [], "exact", {})
    write_digests(folder)
    return folder


def _as_registered_before(folder: Path, copy: Path) -> Path:
    """A version without the interactions that were held out."""
    shutil.copytree(folder, copy)
    (copy / "known.parquet").unlink()
    (copy / FILE_NAME).unlink()
    write_digests(copy)
    return copy


def _taken(run: FinishedRun, *parts: str) -> dict[str, list[str]]:
    known = run.dataset.sequences(*parts)
    items = pl.Series(run.dataset.item_ids).gather(known.items)
    found = pl.DataFrame({"user": pl.Series(run.dataset.user_ids).gather(known.users), "item": items})
    return dict(found.group_by("user", maintain_order=True).agg("item").iter_rows())


def _lists(model: ServedModel, run: FinishedRun) -> dict[str, set[str]]:
    users = run.dataset.user_ids
    answer = model.answer({"user_id": users}, top_k=ITEMS)
    pairs = list(zip(answer["user_id"], answer["item_id"], strict=True))
    return {user: {item for other, item in pairs if other == user} for user in users}


def test_lists_leave_out_what_users_took_in_any_part_of_the_split(folder: Path, run: FinishedRun) -> None:
    everything = set(run.dataset.item_ids)
    lists = _lists(ServedModel(folder), run)
    assert lists == {user: everything - set(items) for user, items in _taken(run, *run.dataset.parts).items()}


def test_a_version_without_what_was_held_out_is_served_as_before(
    folder: Path, run: FinishedRun, tmp_path: Path
) -> None:
    older = ServedModel(_as_registered_before(folder, tmp_path / "older"))
    everything = set(run.dataset.item_ids)
    assert _lists(older, run) == {user: everything - set(items) for user, items in _taken(run, "train").items()}


def test_a_user_is_served_as_the_visitor_with_all_that_the_user_took(folder: Path, run: FinishedRun) -> None:
    model, taken = ServedModel(folder), _taken(run, *run.dataset.parts)
    if run.record.recommender == "bpr":
        pytest.skip("a user of BPR has a vector of training, which no history gives")
    users = run.dataset.user_ids
    known = model.answer({"user_id": users}, top_k=5)
    visiting = model.answer({"history": [taken[user] for user in users]}, top_k=5)
    assert known["item_id"] == visiting["item_id"]
    assert known["score"] == pytest.approx(visiting["score"], abs=1e-5)


def test_without_a_history_that_can_be_read_scores_are_those_of_an_average_user(folder: Path, run: FinishedRun) -> None:
    model, users = ServedModel(folder), run.dataset.user_ids
    if run.record.recommender == "bpr":
        pytest.skip("of BPR the fold-in predicts an average user")
    everyone = pl.DataFrame(model.answer({"user_id": users}, top_k=ITEMS, exclude_seen=False), strict=False)
    expected = dict(everyone.group_by("item_id").agg(pl.mean("score")).iter_rows())
    rows = {"user_id": ["nobody", None, None, None], "history": [None, [], ["gone"], ["i1"]]}
    found = pl.DataFrame(model.answer(rows, top_k=ITEMS), strict=False)
    for row in range(3):
        answer = found.filter(pl.col("row") == row)
        assert answer["score"].to_list() == pytest.approx([expected[item] for item in answer["item_id"]], abs=1e-5)
        assert len(set(answer["score"])) > 1
    assert found.filter(pl.col("row") == 3)["score"][0] != found["score"][0]


def test_the_gate_reads_and_leaves_out_training_items_alone(folder: Path, run: FinishedRun, tmp_path: Path) -> None:
    older = _as_registered_before(folder, tmp_path / "older")
    found, before = compare_on(run.dataset, folder, folder), compare_on(run.dataset, older, older)
    assert found.account == before.account
    assert f"{2 * USERS} held out" in found.account
    assert found.ours.equals(before.ours)
