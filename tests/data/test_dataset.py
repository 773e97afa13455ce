"""The read side: what is opened is what was packed, or the reason why it cannot be opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.errors import UserError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    rows = [(f"{user}", f"{item}", (user + item) % 3) for user in range(8) for item in range(12)]
    table = pl.DataFrame(rows, schema=["userID", "itemID", "x_label"], orient="row")
    table.write_csv(folder / "a.inter", separator="\t")
    pack(PackConfig(interactions=folder / "a.inter", out=folder / "packed", split="given"))
    return folder / "packed"


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copied")


def test_columns_are_those_that_were_packed(packed: Path) -> None:
    data = Dataset(packed)
    assert data.parts == ("train", "validation", "test")
    assert (data.num_users, data.num_items) == (8, 12)
    assert data.user_ids == [str(user) for user in range(8)]
    assert data.item_ids == data.titles == [str(item) for item in range(12)]
    assert data.texts == [""] * 12
    assert data.shard_paths() == []
    for label, part in enumerate(data.parts):
        read = data.interactions(part)
        expected = [(user, item) for user in range(8) for item in range(12) if (user + item) % 3 == label]
        assert list(zip(read.users.tolist(), read.items.tolist(), strict=True)) == expected
        assert read.users.dtype == read.items.dtype == np.int64


def test_interactions_become_tensors_that_may_be_written_to(packed: Path) -> None:
    torch.from_numpy(Dataset(packed).interactions("train").users).add_(1)
    assert Dataset(packed).interactions("train").users.min() == 0


@pytest.mark.parametrize("timed", [True, False])
def test_sequences_of_several_parts_are_in_one_order_of_time(tmp_path: Path, timed: bool) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"{u}", f"{i}", label, float(time))
        for (u, i), label, time in zip(np.ndindex(4, 12), rng.integers(0, 3, 48), rng.permutation(48), strict=True)
    ]
    table = pl.DataFrame(rows, schema=["userID", "itemID", "x_label", "timestamp"], orient="row")
    (table if timed else table.drop("timestamp")).write_csv(tmp_path / "a.inter", separator="\t")
    pack(PackConfig(interactions=tmp_path / "a.inter", out=tmp_path / "packed", split="given", core=0))
    data = Dataset(tmp_path / "packed")
    read = data.sequences("train", "validation")
    known = [row for label in (0, 1) for row in rows if row[2] == label]
    expected = sorted(known, key=lambda row: row[3]) if timed else known
    found = zip((data.user_ids[user] for user in read.users), (data.item_ids[item] for item in read.items), strict=True)
    assert list(found) == [row[:2] for row in expected]
    with pytest.raises(UserError, match="no cold_test"):
        data.sequences("train", "cold_test")


def test_split_without_cold_items_has_none(packed: Path) -> None:
    assert Dataset(packed).cold_items("cold_test").tolist() == []
    with pytest.raises(UserError, match=r"got 'cold_test', but .* has train, validation, test"):
        Dataset(packed).interactions("cold_test")


def test_missing_folder_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards: no files at .*nothing; expected a folder that `ptmrec pack` wrote"):
        Dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Dataset(tmp_path)


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet", "interactions/test.parquet"])
def test_missing_file_is_named(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"lacks 1 of 5 files, first {Path(name).name}"):
        Dataset(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99, this program reads 2; update ptmrec-dist or pack again"),
        ({"schema_version": 1}, "schema version 1, this program reads 2; remove the folder and pack again"),
        ({"interactions": {"../../train": 1}}, "is not the name of a file in it"),
        ({"colour": "red"}, "was not written by `ptmrec pack`"),
        ({"shards": [{"name": "a.tar"}]}, "was not written by `ptmrec pack`"),
    ],
)
def test_manifest_of_another_kind_is_refused(change: dict, message: str, copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message):
        Dataset(copied)


def test_manifest_that_is_not_json_is_refused(copied: Path) -> None:
    (copied / "manifest.json").write_text('{"schema_version": 1,')
    with pytest.raises(UserError, match="was not written by `ptmrec pack`"):
        Dataset(copied)
