"""A recommender from outside that knows users by their histories alone goes the whole way: no code knows it."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from starlette.testclient import TestClient
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.config.recommenders import RECOMMENDERS, RecommenderConfig, RecommenderEntry
from ptmrec_dist.config.table import bounded
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.recommenders.base import Batch, Inputs, LinearMap, Queries, Recommender, Tables
from ptmrec_dist.recommenders.layers import modal_maps
from ptmrec_dist.recommenders.losses import bpr_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features, row_gaps, rows_of
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from tests.conftest import Project
from tests.ranks import run_on_ranks

LENGTH = 4


@dataclass(frozen=True, kw_only=True)
class MeanConfig(RecommenderConfig):
    """Hyper-parameters."""

    width: int = bounded(8, 1)
    """Width of a vector."""
    length: int = bounded(LENGTH, 1)
    """Items of a history."""


class MeanOfRecent(Recommender):
    """A user is the mean of the recent items, and these are their features: there is no table of users, and no ID."""

    multimodal: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: MeanConfig) -> None:
        super().__init__(inputs)
        self.history_length = config.length
        self.maps = modal_maps(inputs.features, config.width)

    def tables(self, features: Features) -> Tables:
        return {"vectors": self.cold_items(features)}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        assert queries.histories is not None
        taken_BL1 = queries.histories.mask[:, :, None]
        vectors_BLD = F.embedding(queries.histories.items, tables["vectors"])
        return (vectors_BLD * taken_BL1).sum(dim=1) / taken_BL1.sum(dim=1).clamp(min=1)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        return rows_of(tables["vectors"], chosen)

    def score(self, users_BD: Tensor, items_CD: Tensor) -> Tensor:
        return F.normalize(users_BD) @ F.normalize(items_CD).T

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        gaps_BD = row_gaps(tables["vectors"], batch.positives, batch.negatives)
        return {"bpr": bpr_term(self.users(batch.queries, tables), gaps_BD)}

    def cold_map(self) -> dict[str, LinearMap]:
        return {modality: (linear.get_parameter("weight"), None) for modality, linear in self.maps.items()}


ENTRY = RecommenderEntry(MeanConfig, f"{__name__}:MeanOfRecent")


@pytest.fixture(scope="module")
def row() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECOMMENDERS, "mean", ENTRY)
        yield


@pytest.fixture(scope="module")
def chain(
    row: None, tiny_project: Project, empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with runs of both stages, and the second one registered."""
    folder = tmp_path_factory.mktemp("mean")
    shutil.copy(empty_sqlite, folder)
    common = ["--tracking.enabled", "false", "--device", "cpu", "--epochs", "2", "--out"]
    inputs = ["--shards", str(tiny_project.shards), "--features", str(tiny_project.features)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        for command in (
            ["stage1", *inputs, "--recommender", "mean", *common, str(folder / "stage1")],
            ["stage2", "--stage1", str(folder / "stage1"), "--batch_size", "12", *common, str(folder / "stage2")],
            ["evaluate", "--run", str(folder / "stage2"), "--device", "cpu"],
            ["register", "--run", str(folder / "stage2"), "--name", "mean", "--alias", "champion"],
        ):
            assert cli.main(command) == 0
        yield folder


def _vectors(run: FinishedRun) -> np.ndarray:
    maps = {name: linear.get_parameter("weight").detach() for name, linear in run.recommender.maps.items()}
    vectors = sum(table @ maps[name].T for name, table in run.features.items()) / len(maps)
    return np.asarray(vectors)


def _ranking(vectors: np.ndarray, history: list[int], candidates: list[int]) -> list[int]:
    """Candidates by their cosine with the mean of the latest items."""
    user = np.mean([vectors[item] for item in history[-LENGTH:]], axis=0)
    cosines = {i: vectors[i] @ user / np.linalg.norm(vectors[i]) / np.linalg.norm(user) for i in candidates}
    return sorted(cosines, key=lambda item: -cosines[item])


def _taken(dataset: Dataset, user: int, *parts: str) -> list[int]:
    read = [dataset.interactions(part) for part in parts]
    return [int(item) for part in read for item in part.items[part.users == user]]


def _warm(dataset: Dataset) -> list[int]:
    cold = {int(item) for part in ("cold_validation", "cold_test") for item in dataset.cold_items(part)}
    return [item for item in range(dataset.num_items) if item not in cold]


def test_both_stages_train_it_and_evaluation_ranks_by_what_was_taken_before(chain: Path) -> None:
    run = load_run(chain / "stage2")
    before, after = (
        np.asarray(load_run(chain / stage).recommender.maps["image"].weight.detach()) for stage in ("stage1", "stage2")
    )
    assert not np.allclose(before, after)
    losses = [
        json.loads(line).get("loss/kt", 1.0) for line in (chain / "stage2" / "history.jsonl").read_text().splitlines()
    ]
    assert all(loss > 0 for loss in losses)
    metrics = json.loads((chain / "stage2" / "metrics.json").read_text())
    dataset, vectors = run.dataset, _vectors(run)
    for part, known, candidates in (
        ("validation", ["train"], _warm(dataset)),
        ("cold_test", ["train", "validation"], dataset.cold_items("cold_test").tolist()),
    ):
        gains = []
        for user in sorted(set(dataset.interactions(part).users.tolist())):
            wanted, seen = _taken(dataset, user, part), _taken(dataset, user, "train")
            history = _sorted_by_time(dataset, user, known)
            open_items = [item for item in candidates if item not in seen]
            ranks = [rank for rank, item in enumerate(_ranking(vectors, history, open_items)[:10]) if item in wanted]
            best = sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), 10)))
            gains.append(sum(1 / math.log2(rank + 2) for rank in ranks) / best)
        assert metrics[part]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)


def _sorted_by_time(dataset: Dataset, user: int, parts: list[str]) -> list[int]:
    tables = [pl.read_parquet(dataset.folder / "interactions" / f"{part}.parquet") for part in parts]
    rows = [row for table in tables for row in table.rows(named=True) if row["user_index"] == user]
    return [row["item_index"] for row in sorted(rows, key=lambda row: row["timestamp"])]


def _train_on_ranks(project: Project, folder: Path) -> list[int]:
    """Stage 1, then stage 2 from the run of one process, with its parameters whole and divided over the ranks."""
    RECOMMENDERS["mean"] = ENTRY
    common = ["--tracking.enabled", "false", "--device", "cpu", "--epochs", "2", "--out"]
    inputs = ["--shards", str(project.shards), "--features", str(project.features), "--recommender", "mean"]
    codes = [cli.run("stage1", [*inputs, *common, str(folder / "stage1")])]
    for stage in ("0", "3"):
        start = ["--stage1", str(folder.parent / "stage1"), "--batch_size", "12", "--zero.stage", stage]
        codes.append(cli.run("stage2", [*start, *common, str(folder / f"zero{stage}")]))
    return codes


@pytest.mark.slow
def test_ranks_and_divided_parameters_train_it_as_one_process_does(chain: Path, tiny_project: Project) -> None:
    folder = chain / "ranks"
    assert run_on_ranks(2, _train_on_ranks, tiny_project, folder) == [[0, 0, 0]] * 2
    for one, many in ((chain / "stage1", folder / "stage1"), (folder / "zero0", folder / "zero3")):
        expected, found = (load_run(run).recommender.state_dict() for run in (one, many))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
        expected, found = (json.loads((run / "metrics.json").read_text()) for run in (one, many))
        assert found.keys() == expected.keys()
        assert all(found[part] == pytest.approx(values, abs=1e-6) for part, values in expected.items())


def test_a_known_user_is_recommended_items_by_all_that_the_user_took(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(chain / "stage2")
    assert cli.main(["recommend", "--model", "models:/mean@champion", "--users", "u3", "--top_k", "3"]) == 0
    printed = capsys.readouterr().out
    user = run.dataset.user_ids.index("u3")
    warm, taken = _warm(run.dataset), _sorted_by_time(run.dataset, user, list(run.dataset.parts))
    readable = [item for item in taken if item in warm]  # it has no vectors of the others
    best = _ranking(_vectors(run), readable, [item for item in warm if item not in taken])[:3]
    found = [line.split("│")[3].strip() for line in printed.splitlines() if line.count("│") > 4]
    assert found == [run.dataset.item_ids[item] for item in best]


def test_a_visitors_history_is_read_in_its_order_over_http(chain: Path) -> None:
    from ptmrec_dist.registry.server import build_app

    run = load_run(chain / "stage2")
    warm = _warm(run.dataset)
    histories = [warm[:6], warm[:6][::-1]]
    rows = [{"history": [run.dataset.item_ids[item] for item in history]} for history in histories]
    with TestClient(build_app("models:/mean/1")) as client:
        answer = client.post("/invocations", json={"dataframe_records": rows, "params": {"top_k": 5}})
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["predictions"]
    for number, history in enumerate(histories):
        best = _ranking(_vectors(run), history, [item for item in warm if item not in history])[:5]
        items = [line["item_id"] for line in found if line["row"] == number]
        assert items == [run.dataset.item_ids[item] for item in best]


def test_an_index_of_dot_products_is_refused_for_a_score_of_its_own(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["register", "--run", str(chain / "stage2"), "--name", "other", "--index", "faiss"]) == 2
    assert "index: FAISS compares dot products, but mean has a score of its own" in capsys.readouterr().err
