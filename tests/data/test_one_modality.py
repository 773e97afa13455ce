"""Catalogues of one modality, and items that lack one: packed, read, and counted."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.errors import Fault, UserError
from tests.data.small_catalogue import read_report, write_catalogue
from tests.data.test_stream import READER


def _catalogue(folder: Path, *names: str, **changes: object) -> PackConfig:
    config = dataclasses.replace(write_catalogue(folder, num_items=30), core=2, num_shards=4, **changes)
    pl.read_csv(config.items).select("item_id", *names).write_csv(config.items)
    return config


def _with_holes(folder: Path) -> PackConfig:
    """Of 30 items, 10 have no image path, one has no image file, one a broken one, and 5 have no text."""
    config = _catalogue(folder, "text", "image", missing="keep")
    item = pl.int_range(30)
    image = pl.when(item % 3 == 0).then(None).otherwise(pl.col("image"))
    text = pl.when(item % 6 == 1).then(None).otherwise(pl.col("text"))
    pl.read_csv(config.items).with_columns(image=image, text=text).write_csv(config.items)
    (folder / "images/2.jpg").unlink()
    (folder / "images/5.jpg").write_bytes(b"broken")
    return config


@pytest.mark.parametrize(("name", "ending"), [("text", "txt"), ("image", "jpg")])
def test_catalogue_of_one_modality_is_packed(name: str, ending: str, tmp_path: Path, capsys) -> None:
    config = _catalogue(tmp_path / "catalogue", name)
    pack(config)
    data = Dataset(config.out)
    assert data.num_items == 30
    assert data.manifest.modalities == (name,)
    assert data.manifest.image_size == (224 if name == "image" else None)
    assert data.has(name).all()
    assert not data.has({"text": "image", "image": "text"}[name]).any()
    endings = set()
    for path in data.shard_paths():
        with tarfile.open(path) as tar:
            endings |= {member.name.partition(".")[2] for member in tar}
    assert endings == {"json", ending}
    assert f"30 items with {name} alone" in capsys.readouterr().out


def test_items_that_lack_one_keep_their_interactions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _with_holes(tmp_path / "catalogue")
    pack(dataclasses.replace(config, missing="drop"))
    dropped = Dataset(config.out)
    assert dropped.num_items == 13
    assert "--missing keep keeps them" in capsys.readouterr().out
    pack(config)
    kept = Dataset(config.out)
    assert kept.num_items == 30
    assert sum(kept.manifest.interactions.values()) == pl.read_csv(config.interactions).height
    lacking = {int(item[1:]) for item, has in zip(kept.item_ids, kept.has("image"), strict=True) if not has}
    assert lacking == {*range(0, 30, 3), 2, 5}
    assert np.flatnonzero(~kept.has("text")).tolist() == [1, 7, 13, 19, 25]
    report = read_report(config.out)["items"]
    counts = {reason: entry["count"] for reason, entry in report["incomplete"].items()}
    assert counts == {"no image path": 10, "image file is missing": 1, "file is not an image": 1, "empty text": 5}
    assert report["read"] == report["kept"] == 30


def test_a_wrong_image_folder_is_no_reason_to_keep_everything(tmp_path: Path) -> None:
    config = _with_holes(tmp_path / "catalogue")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="image file is missing"):
        pack(dataclasses.replace(config, images=tmp_path / "elsewhere", core=29))


def test_broken_images_stop_a_strict_run_also_where_items_without_are_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(_with_holes(tmp_path / "catalogue"), on_error="fail")
    with pytest.raises(UserError, match="1 file is not an image"):
        pack(config)
    assert not config.out.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_items_that_lack_one_are_streamed_with_the_others(tmp_path: Path, workers: int) -> None:
    config = _with_holes(tmp_path / "catalogue")
    pack(config)
    data = Dataset(config.out)
    batches = list(ItemStream(data, 0, 1, 7, READER, workers=workers).epoch(0))
    seen = torch.cat([batch.items for batch in batches])
    assert sorted(seen.tolist()) == list(range(30))
    files = ItemFiles(data, READER)
    for batch in batches:
        assert len(batch.images) == len(batch.texts) == len(batch.items)
        again = files.read(batch.items.numpy())
        assert torch.equal(again.images, batch.images)
        assert torch.equal(again.texts, batch.texts)


def test_a_file_that_is_lost_is_damage_not_absence(tmp_path: Path) -> None:
    config = _with_holes(tmp_path / "catalogue")
    pack(config)
    data = Dataset(config.out)
    path = data.shard_paths()[0]
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    lost = next(member.name for member, _ in members if member.name.endswith(".jpg"))
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            if member.name != lost:
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(Fault, match="lacks its image or text"):
        list(ItemStream(data, 0, 1, 8, READER).epoch(0))


def test_a_complete_catalogue_gives_the_same_shards_however_incomplete_items_are_treated(tmp_path: Path) -> None:
    config = _catalogue(tmp_path / "catalogue", "text", "image")
    pack(config)
    before = Dataset(config.out)
    pack(dataclasses.replace(config, missing="keep"))
    assert Dataset(config.out).fingerprint == before.fingerprint
    assert Dataset(config.out).manifest.shards == before.manifest.shards
