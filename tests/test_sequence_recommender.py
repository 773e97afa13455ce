"""Sequence recommenders go the whole way: from interactions in time order to answers over HTTP."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file
from starlette.testclient import TestClient

from ptmrec_dist import cli
from ptmrec_dist.config import Stage1Config, recommender_config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks

ITEMS, USERS = 40, 90
COMMON = ["--tracking.enabled", "false", "--device", "cpu"]
TRAINING = ["--batch_size", "64", "--lr", "0.02", "--model.dim", "16", "--model.length", "6"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users go round in a circle of items, from where they like and some steps at a time."""
    folder, rng = tmp_path_factory.mktemp("circle"), np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        start, length = rng.integers(ITEMS), rng.integers(4, 12)
        rows += [(f"u{user}", f"i{(start + step) % ITEMS:02d}", step) for step in range(length)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    table.sample(fraction=1, shuffle=True, seed=0).write_csv(folder / "a.csv")
    command = ["pack", "--interactions", str(folder / "a.csv"), "--split", "leave_one_out", "--core", "2"]
    assert cli.main([*command, "--out", str(folder / "packed")]) == 0
    return folder / "packed"


@pytest.fixture(scope="module")
def chain(shards: Path, empty_sqlite: Path, faiss: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a registered run of SASRec."""
    folder = tmp_path_factory.mktemp("sasrec")
    shutil.copy(empty_sqlite, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        train = ["stage1", "--shards", str(shards), "--recommender", "sasrec", *TRAINING, *COMMON, "--epochs", "25"]
        for command in (
            [*train, "--out", str(folder / "run")],
            ["evaluate", "--run", str(folder / "run"), "--device", "cpu"],
            ["report", "--runs", str(folder / "run"), "--out", str(folder / "page.html")],
            ["register", "--run", str(folder / "run"), "--name", "next", "--index", "faiss"],
        ):
            assert cli.main(command) == 0, command
        yield folder


def test_metrics_are_those_of_a_full_ranking_after_everything_that_was_taken_before(chain: Path) -> None:
    run = load_run(chain / "run")
    dataset, model = run.dataset, run.recommender.eval()
    metrics = json.loads((chain / "run" / "metrics.json").read_text())
    assert metrics["test"]["hr@10"] == metrics["test"]["recall@10"] > 0.7  # chance level is about .3
    for part, known in (("validation", ["train"]), ("test", ["train", "validation"])):
        hits, gains = [], []
        for user, wanted in zip(*_columns(dataset, part), strict=True):
            history = [
                item for read in known for taker, item in zip(*_columns(dataset, read), strict=True) if taker == user
            ]
            scores = _scores(model, history)
            rank = sum(scores[i] > scores[wanted] for i in range(ITEMS) if i not in history)
            hits.append(rank < 10)
            gains.append(1 / math.log2(rank + 2) if rank < 10 else 0.0)
        assert metrics[part]["hr@10"] == pytest.approx(np.mean(hits))
        assert metrics[part]["ndcg@10"] == pytest.approx(np.mean(gains))


def _columns(dataset: Dataset, part: str) -> tuple[list[int], list[int]]:
    read = dataset.interactions(part)
    return read.users.tolist(), read.items.tolist()


def _scores(model: Any, history: list[int]) -> list[float]:
    import torch

    vectors = model.item_vectors({})
    read = vectors[torch.tensor(history[-model.history_length :])][None]
    state = model.states(read, torch.ones(read.shape[:2], dtype=torch.bool))[0, -1]
    return (vectors @ state).tolist()


def _best(chain: Path, history: list[int]) -> list[str]:
    run = load_run(chain / "run")
    scores = _scores(run.recommender.eval(), history)
    others = [item for item in range(ITEMS) if item not in history]
    return [run.dataset.item_ids[item] for item in sorted(others, key=lambda item: -scores[item])[:3]]


def _taken(dataset: Dataset, user: int) -> list[int]:
    """What a user took in all parts, in the order of time."""
    taken = dataset.sequences(*dataset.parts)
    return taken.items[taken.users == user].tolist()


def test_known_users_and_visitors_are_ranked_by_the_state_after_their_history(chain: Path) -> None:
    from ptmrec_dist.registry.server import build_app

    dataset = load_run(chain / "run").dataset
    named = [["i03", "i04", "i05"], ["i05", "i04", "i03"], ["i09", "unknown", "i10"]]
    histories = [_taken(dataset, user) for user in range(5)]
    histories += [[dataset.item_ids.index(item) for item in items if item != "unknown"] for items in named]
    rows = [{"user_id": user} for user in dataset.user_ids[:5]] + [{"history": items} for items in named]
    with TestClient(build_app("models:/next/1")) as client:
        answer = client.post("/invocations", json={"dataframe_records": rows, "params": {"top_k": 3}})
    assert answer.status_code == 200
    for row, history in enumerate(histories):
        found = [line["item_id"] for line in answer.json()["predictions"] if line["row"] == row]
        assert found == _best(chain, history)
    assert _best(chain, histories[5]) != _best(chain, histories[6])  # the same items in another order


def test_the_command_line_recommends_what_follows(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--model", "models:/next/1", "--users", "u3", "--top_k", "3"]) == 0
    dataset = load_run(chain / "run").dataset
    best = _best(chain, _taken(dataset, dataset.user_ids.index("u3")))
    printed = capsys.readouterr().out
    assert [printed.index(item) for item in best] == sorted(printed.index(item) for item in best)


def test_the_report_names_it(chain: Path) -> None:
    assert "sasrec" in (chain / "page.html").read_text()


def test_stage_2_refuses_it_in_one_line(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = chain / "stage2"
    assert cli.main(["stage2", "--stage1", str(chain / "run"), *COMMON, "--out", str(out)]) == 2
    assert "stage1: got a run of SASRec, which scores no modality alone" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recommender", "vbpr", "--features", "f", "--loss", "bce"], "loss: got 'bce', expected inbatch with vbpr"),
        (["--recommender", "bpr", "--num_negatives", "3"], "num_negatives: got 3"),
        (["--recommender", "sasrec", "--loss", "full", "--negatives", "rank"], "negatives: got 'rank'"),
        (["--recommender", "sasrec", "--model.length", "0"], r"model.length: got 0, expected 1 or more"),
    ],
)
def test_settings_that_nothing_reads_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["stage1", "--shards", str(shards), *words, *COMMON, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_interactions_without_times_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"u{n % 9},i{n % 7}\n" for n in range(63))
    (tmp_path / "a.csv").write_text("user_id,item_id\n" + lines)
    assert cli.main(["pack", "--interactions", str(tmp_path / "a.csv"), "--out", str(tmp_path / "packed")]) == 0
    command = ["stage1", "--shards", str(tmp_path / "packed"), "--recommender", "gru4rec", *COMMON]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "have no time, but a recommender that reads sequences needs their order" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_items_that_are_taken_again_are_misses_that_are_counted_unless_they_are_ranked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everybody goes round a circle of four items twice: what is tested was always taken before."""
    rows = [(f"u{user}", f"i{(user + step) % 4}", step) for user in range(12) for step in range(8)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "a.csv")
    packing = ["pack", "--interactions", str(tmp_path / "a.csv"), "--split", "leave_one_out", "--repeats", "keep"]
    assert cli.main([*packing, "--out", str(tmp_path / "packed")]) == 0
    command = ["stage1", "--shards", str(tmp_path / "packed"), "--recommender", "sasrec", *TRAINING, *COMMON]
    found = {}
    for masked in ("true", "false"):
        caplog.clear()
        words = ["--epochs", "2", "--loss", "full", "--mask_history", masked, "--out", str(tmp_path / masked)]
        assert cli.main([*command, *words]) == 0
        found[masked] = json.loads((tmp_path / masked / "metrics.json").read_text())["test"]["recall@20"]
        counted = "12 of 12 test positives, of 12 users, were taken before" in caplog.text
        assert counted == (masked == "true")
    assert found == {"true": 0.0, "false": 1.0}


def _train(config: Stage1Config) -> None:
    train_stage1(config)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(shards: Path, tmp_path: Path) -> None:
    """Under DeepSpeed, without dropout, whose masks are a rank's own; the users of a step cannot be divided evenly."""
    results = []
    for ranks in (1, 2):
        config = Stage1Config(
            shards=shards,
            out=tmp_path / f"{ranks}",
            recommender="sasrec",
            model=recommender_config("sasrec", dim=16, length=6, dropout=0.0),
            batch_size=60,
            epochs=3,
            device="cpu",
            tracking=UNTRACKED,
        )
        run_on_ranks(ranks, _train, config)
        results.append(load_file(config.out / "recommender.safetensors"))
    one, two = results
    for name, value in one.items():
        if name.endswith("in_proj_bias"):  # attention does not depend on biases of keys: their gradient is rounding
            (two[name][16:32], value[16:32]) = (0, 0)
        np.testing.assert_allclose(two[name], value, atol=2e-5, err_msg=name)


def test_a_features_folder_is_not_read(shards: Path, tiny_project: Project, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--shards", str(shards), "--features", str(tiny_project.features), "--recommender", "nextitnet"]
    assert cli.main(["stage1", *words, *COMMON, *TRAINING, "--epochs", "1", "--out", str(out)]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["features"] is None
    assert record["parameters"]["ids"] == ITEMS * 16
