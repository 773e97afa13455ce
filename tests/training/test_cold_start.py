"""Cold start: rows, masks, histories and ranks against a loop over every prefix; held-out rows contain no training row."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.cli import run
from ptmrec_dist.config import recommender_config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.histories import PaddedHistories
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_json
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.recommenders.base import Queries, Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.cold_start import cold_start
from tests.data.small_catalogue import write_catalogue

_BELOW, _LENGTH, _USERS = 7, 4, 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users in time order, with rare items; item 0 is taken once, as the last of a user: it is new."""
    folder = tmp_path_factory.mktemp("cold")
    config = write_catalogue(folder, num_items=40, num_users=_USERS, density=0.3)
    rows = pl.read_csv(config.interactions).filter(pl.col("item_id") != "i0")
    rows = rows.with_columns(timestamp=pl.int_range(pl.len()).shuffle(seed=3))
    rows = pl.concat([rows, pl.DataFrame({"user_id": ["u2"], "item_id": ["i0"], "timestamp": [10**6]})])
    rows.write_csv(config.interactions)
    pack(dataclasses.replace(config, items=None, core=0, split="leave_one_out", out=folder / "shards"))
    return Dataset(folder / "shards")


def _built(name: str, dataset: Dataset, **settings: int) -> tuple[Recommender, Features]:
    torch.manual_seed(0)
    features = {"text": torch.randn(dataset.num_items, 6)} if name in ("morec", "vbpr", "carca") else {}
    built = build_recommender(
        name,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features=features,
        modalities=tuple(features),
        config=recommender_config(name, **settings),
    )
    built.fit_cold_map(features)
    return built.eval(), features


@torch.no_grad()
def _by_hand(dataset: Dataset, recommender: Recommender, features: Features, mask: bool) -> dict[str, list[float]]:
    """Rank of the target of every row of each set, by a loop."""
    train = dataset.interactions("train")
    counts = np.bincount(train.items, minlength=dataset.num_items)
    tables = recommender.tables(features)
    items_ID = recommender.items(features, tables).clone()
    if recommender.multimodal:
        for item in np.flatnonzero(counts == 0):
            items_ID[item] = recommender.cold_items({name: table[[item]] for name, table in features.items()})[0]
    every = pl.concat([dataset.table(part).with_columns(part=pl.lit(part)) for part in ("train", "validation", "test")])
    ranks: dict[str, list[float]] = {"all": [], "held_out": [], "new": []}
    for user in range(dataset.num_users):
        sequence = every.filter(pl.col("user_index") == user).sort("timestamp")
        items = sequence["item_index"].to_list()
        for position in range(1, len(items)):
            target, prefix = items[position], items[:position]
            if counts[target] >= _BELOW:
                continue
            read = torch.tensor([prefix[-_LENGTH:]])
            histories = PaddedHistories(read, torch.ones_like(read, dtype=torch.bool))
            queries = Queries(torch.tensor([user]), histories if recommender.history_length else None)
            scores = recommender.score(recommender.users(queries, tables), items_ID)[0]
            hidden = set(prefix) if mask else set()
            before = [
                item
                for item in range(dataset.num_items)
                if item not in hidden and (-scores[item], item) < (-scores[target], target)
            ]
            rank = float(len(before) + 1) if target not in hidden else float("inf")
            ranks["all"].append(rank)
            if sequence["part"][position] != "train":
                ranks["held_out"].append(rank)
            if counts[target] == 0:
                ranks["new"].append(rank)
    return ranks


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sasrec", {"dim": 8, "length": _LENGTH}),
        ("bpr", {"dim": 8}),
        ("vbpr", {"dim": 8}),
        ("morec", {"dim": 8, "length": _LENGTH}),
        ("carca", {"dim": 8, "length": _LENGTH}),
    ],
)
def test_every_prefix_that_a_cold_item_follows_is_a_row(
    dataset: Dataset, name: str, settings: dict[str, int], mask: bool
) -> None:
    recommender, features = _built(name, dataset, **settings)
    found = cold_start(dataset, recommender, features, _BELOW, mask)
    expected = _by_hand(dataset, recommender, features, mask)
    assert len(expected["all"]) > len(expected["held_out"]) > len(expected["new"]) == 1
    assert set(found) == {"all", "held_out", "new"}
    for rows, ranks in expected.items():
        assert found[rows]["rows"] == len(ranks)
        for k in (10, 20):
            assert found[rows][f"hr@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
            gains = [1 / np.log2(rank + 1) if rank <= k else 0.0 for rank in ranks]
            assert found[rows][f"ndcg@{k}"] == pytest.approx(np.mean(gains))


@pytest.mark.slow
def test_evaluate_writes_cold_start_and_refuses_what_it_cannot_measure(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["--shards", str(dataset.folder), "--recommender", "sasrec", "--out", str(out), "--epochs", "1"]
    assert run("stage1", [*given, "--model.dim", "8", "--device", "cpu", "--tracking.enabled", "false"]) == 0
    assert run("evaluate", ["--run", str(out), "--device", "cpu", "--cold_below", "7"]) == 0
    written = read_json(out / "cold_start.json", "run")
    assert written["below"] == 7
    assert written["all"]["rows"] > written["held_out"]["rows"] > written["new"]["rows"]
    before = (out / "metrics.json").read_bytes(), (out / "cold_start.json").read_bytes()
    capfd.readouterr()
    assert run("evaluate", ["--run", str(out), "--device", "cpu", "--cold_below", "0"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert ((out / "metrics.json").read_bytes(), (out / "cold_start.json").read_bytes()) == before


def test_data_without_times_or_cold_items_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    recommender, _ = _built("bpr", dataset, dim=8)
    config = write_catalogue(tmp_path, num_items=40, num_users=_USERS, density=0.9)
    pack(dataclasses.replace(config, items=None, core=0))
    with pytest.raises(UserError, match="have no time"):
        cold_start(Dataset(config.out), recommender, {}, 10)
    rows = pl.read_csv(config.interactions).with_columns(timestamp=pl.int_range(pl.len()).shuffle(seed=0))
    rows.write_csv(config.interactions)
    pack(dataclasses.replace(config, items=None, core=5, split="leave_one_out"))
    with pytest.raises(UserError, match="no item with fewer training interactions"):
        cold_start(Dataset(config.out), recommender, {}, 1)
