"""Recommendations for all users, by one process and over ranks."""

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from ptmrec_dist import cli
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.params import Params
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.finished_run import load_run
from tests.conftest import Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks


@pytest.fixture(scope="module")
def package(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as MLflow keeps it."""
    from ptmrec_dist.registry.registering import save_pyfunc

    folder = tmp_path_factory.mktemp("model")
    (folder / "model").mkdir()
    write_tables(folder / "model", load_run(tiny_project.stage1), [], "exact", {})
    write_digests(folder / "model")
    save_pyfunc(folder / "model", folder / "package", "u1")
    return folder / "package"


def recommend_all(package: Path, out: Path) -> int:
    return cli.run("recommend", ["--model", str(package), "--all", "--out", str(out), "--top_k", "7"])


@pytest.mark.slow
def test_file_holds_the_list_of_every_user_and_ranks_change_nothing(package, tmp_path):
    assert recommend_all(package, tmp_path / "one.parquet") == 0
    found = pl.read_parquet(tmp_path / "one.parquet")
    model = ServedModel(package / "artifacts" / "model")
    everyone = model.users.resolve(model.users.user_ids, [None] * len(model.users.user_ids))
    answer = model.recommend(everyone, Params(top_k=7))
    assert found["user_id"].to_list() == answer["user_id"]
    assert found["item_id"].to_list() == answer["item_id"]
    assert found["rank"].to_list() == answer["rank"]
    assert found["score"].to_list() == pytest.approx(answer["score"])
    assert run_on_ranks(3, recommend_all, package, tmp_path / "three.parquet") == [0, 0, 0]
    assert pl.read_parquet(tmp_path / "three.parquet").equals(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet", "three.parquet"]


@pytest.mark.slow
def test_lists_of_the_users_of_a_file_are_written_in_its_order(package, tmp_path):
    unknown = "no\u2028bo\x85dy"  # characters that end a line of text, but not of a file
    (tmp_path / "users.txt").write_bytes(f"u7\r\n{unknown}\nu2\n".encode())
    options = ["--model", str(package), "--users_file", str(tmp_path / "users.txt"), "--top_k", "5"]
    assert cli.run("recommend", [*options, "--out", str(tmp_path / "some.parquet")]) == 0
    found = pl.read_parquet(tmp_path / "some.parquet")
    expected = ServedModel(package / "artifacts" / "model").answer({"user_id": ["u7", unknown, "u2"]}, top_k=5)
    for name in ("user_id", "item_id", "rank"):
        assert found[name].to_list() == expected[name]
    assert found["score"].to_list() == pytest.approx(expected["score"])
    refused = tmp_path / "refused.parquet"
    assert cli.run("recommend", [*options, "--unknown", "error", "--out", str(refused)]) == 2
    assert not refused.exists()


@pytest.mark.parametrize(("damage", "code"), [("unknown user", 2), ("no file", 3)])
def test_an_error_of_one_rank_ends_all_and_leaves_what_was_there(package, tmp_path, damage, code):
    """Each of two ranks writes the list of one user: only the second finds its user unknown, or cannot write its file."""
    out, users = tmp_path / "recs.parquet", tmp_path / "users.txt"
    out.write_bytes(b"those of yesterday")
    users.write_text("u1\nnobody\n" if damage == "unknown user" else "u1\nu2\n")
    if damage == "no file":
        (tmp_path / ".recs.parquet.parts" / "1.parquet").mkdir(parents=True)
    options = ["--model", str(package), "--users_file", str(users), "--unknown", "error", "--out", str(out)]
    assert exit_codes_on_ranks(2, command_on_rank, "recommend", options, tmp_path) == [code, code]
    message = "user_id: got 1 unknown ('nobody')" if damage == "unknown user" else f"cannot write {out}"
    assert message in (tmp_path / "rank0").read_text()
    assert out.read_bytes() == b"those of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0", "rank1", "recs.parquet", "users.txt"]


def test_what_was_there_stays_when_writing_fails(package, tmp_path, capsys):
    out = tmp_path / "recs.parquet"
    out.write_bytes(b"those of yesterday")
    served = package / "artifacts" / "model"
    tables, before = load_file(served / "tables.safetensors"), (served / "tables.safetensors").read_bytes()
    digests = (served / "digests.json").read_bytes()
    tables["users"][-1] = torch.inf
    save_file(tables, served / "tables.safetensors")
    assert recommend_all(package, out) == 2
    assert "changed after it was written" in capsys.readouterr().err
    write_digests(served)
    assert recommend_all(package, out) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert out.read_bytes() == b"those of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]
    (served / "tables.safetensors").write_bytes(before)
    (served / "digests.json").write_bytes(digests)


def test_a_model_that_version_0_1_registered_answers_as_one_of_today(package: Path, tmp_path: Path) -> None:
    """Version 0.1 stored a second vector of each user, for cold items, and its map from histories; both were copies."""
    now = package / "artifacts" / "model"
    shutil.copytree(now, tmp_path / "model")
    tables = load_file(now / "tables.safetensors")
    tables["modal_users"] = tables["users"].clone()
    tables["fold_in.weight"] = tables["fold_in.weight"].repeat(1, 2)
    tables["fold_in.bias"] = tables["fold_in.bias"].repeat(2)
    save_file(tables, tmp_path / "model" / "tables.safetensors")
    write_digests(tmp_path / "model")
    models = [ServedModel(folder) for folder in (now, tmp_path / "model")]
    columns = {"user_id": ["u1", None, None], "history": [None, models[0].item_ids[:4].to_list(), []]}
    for candidates in ("warm", "all"):
        expected, found = (model.answer(columns, top_k=9, candidates=candidates) for model in models)
        assert len(expected["item_id"]) == 27
        assert found.pop("score") == pytest.approx(expected.pop("score"), rel=1e-5)
        assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "users: got none, expected either --users, --users_file, --all or --for_items"),
        (("--all", "--users", "u1"), "expected either --users, --users_file, --all or --for_items"),
        (("--all",), "expected a file with --all"),
        (("--for_items", "i1", "--out", "a.parquet"), "out: got a.parquet, expected none with --for_items"),
        (("--users_file", "absent.txt"), "users_file: absent.txt cannot be read"),
        (("--all", "--out", "a.csv"), "out: got a.csv, expected a name that ends in .parquet"),
    ],
)
def test_contradicting_options_are_one_line(options, message, capsys):
    assert cli.run("recommend", ["--model", "absent", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
