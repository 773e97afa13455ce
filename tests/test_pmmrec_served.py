"""PMMRec from training to answers: a visitor's history goes through the user encoder, and a new item through the fusion."""

import base64
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.recommenders.sequential.pmmrec import PMMRec
from ptmrec_dist.registry import load_model
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from tests.conftest import Project

LENGTH = 5
MODEL = ["--recommender", "pmmrec", "--model.dim", "8", "--model.length", str(LENGTH), "--model.fusion_heads", "2"]
COMMON = ["--tracking.enabled", "false", "--device", "cpu", "--epochs", "2", "--batch_size", "60"]


@pytest.fixture(scope="module")
def folder(tiny_project: Project, empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Registered: a run trained with its encoder, and one on frozen features."""
    folder = tmp_path_factory.mktemp("pmmrec")
    shutil.copy(empty_sqlite, folder)
    inputs = ["--shards", str(tiny_project.shards), "--features", str(tiny_project.features), *MODEL, *COMMON]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        tuning = ["--tuning.method", "last_n", "--last_n.n", "1"]
        assert cli.main(["joint", *inputs, *tuning, "--out", f"{folder}/live"]) == 0
        assert cli.main(["stage1", *inputs, "--out", f"{folder}/frozen"]) == 0
        for name in ("live", "frozen"):
            assert cli.main(["register", "--run", f"{folder}/{name}", "--name", name, "--alias", "champion"]) == 0
        yield folder


def _content(run: FinishedRun, item: int) -> dict[str, str]:
    for path in run.dataset.shard_paths():
        with tarfile.open(path) as tar:
            if f"{item:09d}.jpg" in tar.getnames():
                files = [tar.extractfile(f"{item:09d}.{ending}") for ending in ("jpg", "txt")]
                picture, text = (file.read() for file in files if file is not None)
                return {"image": base64.b64encode(picture).decode(), "text": text.decode()}
    raise AssertionError(f"no item {item}")


def _scores(run: FinishedRun, history: list[int]) -> Tensor:
    """Scores of all items for a history, which is read without padding."""
    assert isinstance(run.recommender, PMMRec)
    vectors = run.recommender.eval().item_vectors(run.features)
    latest = vectors[torch.tensor(history[-LENGTH:])][None]
    states = run.recommender.states(latest, torch.ones(latest.shape[:2], dtype=torch.bool))
    return (vectors @ states[0, -1]).detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["live", "frozen"])
def test_a_registered_pmmrec_reads_a_visitors_history_and_ranks_a_new_item(folder: Path, name: str) -> None:
    run, model = load_run(folder / name), load_model(f"models:/{name}@champion")
    cold = np.concatenate([run.dataset.cold_items(part) for part in ("cold_validation", "cold_test")]).tolist()
    warm = [item for item in range(run.dataset.num_items) if item not in cold]
    for history in (warm[:7], warm[:7][::-1], warm[3:5]):
        visitor = {"history": [run.dataset.item_ids[item] for item in history]}
        scores = _scores(run, history)
        answer = model.predict(pd.DataFrame([visitor]), params={"top_k": 5})
        best = sorted((item for item in warm if item not in history), key=lambda item: -float(scores[item]))[:5]
        assert answer["item_id"].to_list() == [run.dataset.item_ids[item] for item in best]
        assert answer["score"].to_list() == pytest.approx(scores[best].tolist(), rel=1e-4, abs=1e-4)
        new = model.predict(pd.DataFrame([visitor | _content(run, item) for item in cold[:2]]))
        assert new["score"].to_list() == pytest.approx(scores[cold[:2]].tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_what_pmmrec_cannot_do_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["refit", "--run", f"{folder}/live", "--out", f"{folder}/refused", "--tracking.enabled", "false"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert "made by its own recommender's fusion" in error
    assert "\n" not in error
    assert not (folder / "refused").exists()
