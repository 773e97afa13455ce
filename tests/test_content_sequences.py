"""Recommenders of sequences of features go the whole way: from features to new items of a registered model."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist import cli
from ptmrec_dist.config import Stage1Config, recommender_config
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.recommenders.base import Queries
from ptmrec_dist.registry import load_model
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks

COMMON = ["--tracking.enabled", "false", "--device", "cpu"]
# The one with codes, whose state holds more than weights; the one with a score of its own; both score new items.
SETTINGS: dict[str, dict[str, Any]] = {"vqrec": {"codebooks": 4, "bits": 3, "heads": 2}, "carca": {"layers": 2}}


def _options(name: str) -> list[str]:
    settings = {"dim": 8, "length": 6, **SETTINGS[name]}
    return [word for key, value in settings.items() for word in (f"--model.{key}", str(value))]


@pytest.fixture(scope="module")
def chain(
    tiny_project: Project, empty_sqlite: Path, faiss: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with a registered run of each."""
    folder = tmp_path_factory.mktemp("content")
    shutil.copy(empty_sqlite, folder)
    inputs = ["--shards", str(tiny_project.shards), "--features", str(tiny_project.features)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        for name in SETTINGS:
            run = str(folder / name)
            train = ["stage1", *inputs, "--recommender", name, *_options(name), "--epochs", "3", "--lr", "0.02"]
            for command in (
                [*train, "--batch_size", "64", *COMMON, "--out", run],
                ["evaluate", "--run", run, "--device", "cpu"],
                ["report", "--runs", run, "--out", run + ".html"],
                ["register", "--run", run, "--name", name],
            ):
                assert cli.main(command) == 0, command
        yield folder


def _scores(run: FinishedRun, history: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all items after a history, and those of all items by their content alone."""
    model, length = run.recommender.eval(), len(history[-6:])
    padded = PaddedHistories(torch.tensor([history[-6:]]), torch.ones(1, length, dtype=torch.bool))
    with torch.no_grad():
        tables = model.tables(run.features)
        user = model.users(Queries(torch.tensor([-1]), padded), tables)
        warm, cold = model.items(run.features, tables), model.cold_items(run.features)
        return model.score(user, warm)[0], model.score(user, cold)[0]


def _best(run: FinishedRun, history: list[int], cold: list[int]) -> list[str]:
    scores = _scores(run, history)[0]
    open_items = [item for item in range(run.dataset.num_items) if item not in cold and item not in history]
    return [run.dataset.item_ids[item] for item in sorted(open_items, key=lambda item: -scores[item])[:3]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_users_are_ranked_by_their_history_and_new_items_by_their_content(
    chain: Path, tiny_project: Project, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, served = load_run(chain / name), load_model(f"models:/{name}/1")
    dataset = run.dataset
    metrics = json.loads((chain / name / "metrics.json").read_text())
    assert set(metrics) == {"validation", "test", "cold_validation", "cold_test"}
    cold = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")]).tolist()
    history = [item for item in range(dataset.num_items) if item not in cold][:8]
    named = [dataset.item_ids[item] for item in history]
    found = served.predict(pd.DataFrame({"history": [named]}), {"top_k": 3})
    assert found["item_id"].to_list() == _best(run, history, cold)

    catalogue = pl.read_csv(tiny_project.source / "items.csv")
    row = catalogue.row(by_predicate=pl.col("item_id") == dataset.item_ids[cold[0]], named=True)
    image = base64.b64encode((tiny_project.source / row["image"]).read_bytes()).decode()
    new = served.predict(pd.DataFrame({"history": [named], "image": [image], "text": [row["text"]]}))
    assert new["score"].to_list() == pytest.approx([_scores(run, history)[1][cold[0]].item()], abs=1e-4)

    # An item without interactions counts in a history, by its content.
    with_new = [*history, cold[0]]
    found = served.predict(pd.DataFrame({"history": [[*named, dataset.item_ids[cold[0]]]]}), {"top_k": 3})
    assert found["item_id"].to_list() == _best(run, with_new, cold)
    assert not np.allclose(_scores(run, with_new)[0], _scores(run, history)[0], atol=1e-3)
    assert found["unknown_items"][0] == []

    # A registered model reads, and leaves out, what all parts of the data know of a user.
    known = dataset.sequences(*dataset.parts)
    best = _best(run, known.items[known.users == dataset.user_ids.index("u3")].tolist(), cold)
    assert cli.main(["recommend", "--model", f"models:/{name}/1", "--users", "u3", "--top_k", "3"]) == 0
    printed = [line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if line.count("│") > 4]
    assert printed == best


@pytest.mark.slow
def test_stage_2_refuses_vectors_that_are_no_linear_maps_before_anything_is_written(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = chain / "stage2"
    assert cli.main(["stage2", "--stage1", str(chain / "vqrec"), *COMMON, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "stage1: got a run of VQRec, which scores no modality alone" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recommender", "unisrec"], "features: unisrec reads images and texts; add --features"),
        (["--recommender", "vqrec", "--features", "F"], "model.bits: got 8, expected 5 or less"),
        (["--recommender", "carca", "--features", "F", "--model.heads", "4"], "model.heads: got 4, expected a divisor"),
        (["--recommender", "carca", "--features", "F", "--model.attention", "half"], "model.attention"),
        (
            ["--recommender", "vqrec", "--features", "F", "--model.bits", "2", "--train_features", "true"],
            "train_features: got True, expected False with vqrec",
        ),
        (["--recommender", "fdsa", "--features", "I", "--modalities", "both"], "modalities: got both, but"),
    ],
)
def test_what_they_cannot_read_is_refused_in_one_line(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    if "I" in words:
        images = ["features", "--shards", str(tiny_project.shards), "--out", str(tmp_path / "images")]
        assert cli.main([*images, "--image_npy", str(tiny_project.features / "image.npy")]) == 0
    folders = {"F": str(tiny_project.features), "I": str(tmp_path / "images")}
    words = [folders.get(word, word) for word in words]
    command = ["stage1", "--shards", str(tiny_project.shards), *words, *COMMON, "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def _train(configs: list[Stage1Config]) -> None:
    for config in configs:
        train_stage1(config)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tiny_project: Project, tmp_path: Path, faiss: Any) -> None:
    """Under DeepSpeed, without dropout, whose masks are a rank's own; one rank finds the codes for both."""
    runs: dict[int, list[Stage1Config]] = {}
    for ranks in (1, 2):
        runs[ranks] = [
            Stage1Config(
                shards=tiny_project.shards,
                features=tiny_project.features,
                out=tmp_path / f"{name}{ranks}",
                recommender=name,
                model=recommender_config(name, **{"dim": 8, "length": 6, "dropout": 0.0, **settings}),
                loss="bce" if name == "carca" else "inbatch",  # no softmax depends on the bias of CARCA's scores
                batch_size=60,
                epochs=3,
                device="cpu",
                tracking=UNTRACKED,
            )
            for name, settings in SETTINGS.items()
        ]
        run_on_ranks(ranks, _train, runs[ranks])
    for one, two in zip(runs[1], runs[2], strict=True):
        expected, found = (load_file(config.out / "recommender.safetensors") for config in (one, two))
        for name, value in expected.items():
            if name.endswith("in_proj_bias"):  # attention does not depend on biases of keys: their gradient is rounding
                (found[name][8:16], value[8:16]) = (0, 0)
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=f"{one.recommender}: {name}")
