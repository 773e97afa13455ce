"""Packing: real images in, real tars out, every row counted."""

import dataclasses
import errno
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import webdataset as wds
from PIL import Image

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.packing.workers import open_workers
from ptmrec_dist.errors import Fault, UserError
from tests.data.small_catalogue import append, folder_bytes, read_report, write_catalogue
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks

_BAD_ITEMS = {
    "empty item id": ",text,images/1.jpg",
    "empty text": "b1,,images/1.jpg",
    "no image path": "b2,text,",
    "image path outside the image folder": "b3,text,../../etc/passwd",
    "duplicate item id": "i3,text,images/1.jpg",
    "image file is missing": "b4,text,images/none.jpg",
    "file is not an image": "b5,text,images/text.jpg",
    "image cannot be decoded": "b6,text,images/cut.jpg",
    "image has too many pixels": "b7,text,images/huge.png",
    "image is too long and thin": "b9,text,images/thin.png",
    "fewer than 5 interactions": "b8,text,images/1.jpg",
}
_BAD_ROWS = {
    "empty user id": ",i1",
    "empty item id": "u1,",
    "unknown item": "u1,unknown",
    "item was left out": "u1,b6",
    "repeated user and item": "v,i1",
    "user or item with fewer than 5 interactions": "u1,b8",
}


_GOOD_IDS = [f"i{item}" for item in range(40)]


def _write_dirty_catalogue(folder: Path) -> PackConfig:
    config = write_catalogue(folder)
    images = folder / "images"
    (images / "text.jpg").write_text("not a picture")
    whole = (images / "39.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (600, 600)).save(images / "huge.png")
    Image.new("1", (60_000, 1)).save(images / "thin.png")
    lines = (folder / "items.csv").read_text().splitlines()
    (folder / "items.csv").write_text("\n".join([*lines[:21], *_BAD_ITEMS.values(), *lines[21:]]))
    append(folder / "interactions.csv", *(f"v,i{item}" for item in range(9)), *_BAD_ROWS.values())
    return dataclasses.replace(config, split="cold_items", max_image_pixels=300_000, workers=2)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> PackConfig:
    config = _write_dirty_catalogue(tmp_path_factory.mktemp("dirty") / "catalogue")
    pack(config)
    return config


def test_pack_counts_add_up_when_rows_are_bad(dirty: PackConfig) -> None:
    report, manifest = read_report(dirty.out), Dataset(dirty.out).manifest
    for name, path in {"items": dirty.items, "interactions": dirty.interactions}.items():
        account = report[name]
        assert account["read"] == pl.read_csv(path).height
        assert account["read"] == account["kept"] + sum(entry["count"] for entry in account["dropped"].values())
    assert report["items"]["kept"] == manifest.num_items == 40
    assert report["interactions"]["kept"] == sum(manifest.interactions.values())


def test_packed_pairs_are_those_of_the_file_that_are_good(dirty: PackConfig) -> None:
    data = Dataset(dirty.out)
    packed = [
        (data.user_ids[user], data.item_ids[item])
        for part in map(data.interactions, data.parts)
        for user, item in zip(part.users.tolist(), part.items.tolist(), strict=True)
    ]
    rows = pl.read_csv(dirty.interactions).rows()
    assert data.item_ids == _GOOD_IDS
    assert sorted(packed) == sorted({(user, item) for user, item in rows if user and item in _GOOD_IDS})


@pytest.mark.parametrize(("name", "lines"), [("items", _BAD_ITEMS), ("interactions", _BAD_ROWS)])
def test_every_bad_row_is_reported_once_with_its_reason(name: str, lines: dict[str, str], dirty: PackConfig) -> None:
    dropped = read_report(dirty.out)[name]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == dict.fromkeys(lines, 1)
    assert "'../../etc/passwd'" in read_report(dirty.out)["items"]["dropped"][list(_BAD_ITEMS)[3]]["examples"][0]


def test_webdataset_reads_every_item_once_from_the_shard_that_is_recorded(dirty: PackConfig) -> None:
    data = Dataset(dirty.out)
    catalogue = pl.read_csv(dirty.items).filter(pl.col("item_id").is_in(_GOOD_IDS)).unique("item_id", keep="first")
    catalogue = catalogue.sort(pl.col("item_id").str.slice(1).cast(pl.Int64))
    shard_of = pl.read_parquet(dirty.out / "items.parquet")["shard"].to_list()
    seen = []
    for number, path in enumerate(data.shard_paths()):
        for sample in wds.WebDataset(str(path), shardshuffle=False).decode("pil"):
            index = sample["json"]["item_index"]
            seen.append(index)
            assert sample["__key__"] == f"{index:09d}"
            assert shard_of[index] == number
            assert sample["json"]["item_id"] == data.item_ids[index] == catalogue["item_id"][index]
            assert sample["txt"] == data.texts[index] == catalogue["text"][index]
            assert sample["jpg"].size == (20 + index, 24)
    assert sorted(seen) == list(range(40))
    assert seen != sorted(seen)


def test_manifest_contains_the_size_and_digest_of_every_shard(dirty: PackConfig) -> None:
    for shard, path in zip(Dataset(dirty.out).manifest.shards, Dataset(dirty.out).shard_paths(), strict=True):
        content = path.read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_cold_items_have_no_warm_interaction_and_are_in_many_shards(dirty: PackConfig) -> None:
    data = Dataset(dirty.out)
    warm = np.concatenate([data.interactions(part).items for part in ("train", "validation", "test")])
    for part, count in {"cold_validation": 2, "cold_test": 6}.items():
        cold = data.cold_items(part)
        assert len(cold) == count
        assert not np.isin(cold, warm).any()
        assert set(data.interactions(part).items.tolist()) == set(cold.tolist())
    shards = pl.read_parquet(dirty.out / "items.parquet")["shard"].to_numpy()
    order = np.lexsort((np.arange(40), shards))
    # One seed serves both: with a common random stream, the cold items would come first.
    assert not np.isin(
        order[:8], np.concatenate([data.cold_items("cold_validation"), data.cold_items("cold_test")])
    ).all()


def test_same_input_gives_the_same_bytes_from_another_folder_with_other_workers(
    dirty: PackConfig, tmp_path: Path
) -> None:
    again = dataclasses.replace(_write_dirty_catalogue(tmp_path / "other"), workers=1)
    pack(again)
    assert folder_bytes(again.out) == folder_bytes(dirty.out)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_give_the_bytes_of_one_process(dirty: PackConfig, tmp_path: Path, ranks: int) -> None:
    """Also the report: bad images are seen by different ranks, and their counts add up. Several rounds of tasks."""
    together = _write_dirty_catalogue(tmp_path / "other")
    run_on_ranks(ranks, _pack_in_small_tasks, dataclasses.replace(together, workers=1))
    assert folder_bytes(together.out) == folder_bytes(dirty.out)
    assert not list(together.out.parent.glob(".*"))


def _pack_in_small_tasks(config: PackConfig) -> None:
    """Chunks of three images and rounds of two tasks per rank: more than one of each for every rank."""
    from ptmrec_dist.data.packing import images, workers

    images._CHUNK, workers._TASKS_A_PROCESS = 3, 2
    pack(config)


def _pack_command(arguments: list[str], logs: Path, sabotage: Callable[..., object] | None = None) -> None:
    """The command on a rank; `sabotage` stands in for the calls of rank 1's processes."""
    from concurrent.futures import ProcessPoolExecutor

    if sabotage is not None and os.environ["RANK"] == "1":
        ProcessPoolExecutor.map = sabotage  # type: ignore[method-assign]
    command_on_rank("pack", arguments, logs)


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _arguments(config: PackConfig, *more: str) -> list[str]:
    paths = ("--items", str(config.items), "--interactions", str(config.interactions), "--out", str(config.out))
    return [*paths, "--workers", "1", *more]


def test_a_mistake_in_the_input_ends_all_ranks_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    config = _write_dirty_catalogue(tmp_path / "catalogue")
    arguments = _arguments(config, "--on_error", "fail")
    assert exit_codes_on_ranks(2, _pack_command, arguments, tmp_path) == [2, 2]
    assert "error: bad input: items: 1 empty item id" in (tmp_path / "rank0").read_text()
    assert (tmp_path / "rank1").read_text() == ""
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "codes", "reported"),
    [
        (_killed, [3, -9], "rank 0: error: lost the connection to the other ranks while packing"),
        (
            _disk_full,
            [3, 3],
            "rank 0: error: rank 1: [Errno 28] No space left on device; make room and run the same command",
        ),
    ],
)
def test_a_rank_that_fails_ends_the_others_and_keeps_what_was_packed_before(
    tmp_path: Path, sabotage: Callable[..., object], codes: list[int], reported: str
) -> None:
    config = write_catalogue(tmp_path / "catalogue")
    pack(config)
    before = folder_bytes(config.out.parent)
    assert exit_codes_on_ranks(2, _pack_command, _arguments(config, "--seed", "1"), tmp_path, sabotage) == codes
    assert reported in (tmp_path / "rank0").read_text()
    assert folder_bytes(config.out.parent) == before


def test_fingerprint_changes_with_a_text_and_with_the_split(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "catalogue")
    prints = []
    for seed, text in [(0, "thing"), (1, "thing"), (0, "thinG")]:
        (tmp_path / "catalogue/items.csv").write_text(
            (tmp_path / "catalogue/items.csv").read_text().replace("thing", text)
        )
        pack(dataclasses.replace(config, seed=seed))
        prints.append(Dataset(config.out).fingerprint)
    assert len(set(prints)) == 3


def test_failing_on_bad_rows_writes_nothing_and_harms_nothing(dirty: PackConfig) -> None:
    before = folder_bytes(dirty.out.parent)
    strict = dataclasses.replace(dirty, on_error="fail")
    with pytest.raises(UserError, match=r"items: 1 empty text \(row 22: item 'b1'\).*interactions: 1 unknown item"):
        pack(strict)
    # Tables without a fault, and images with several: found before anything is written.
    lines = dirty.items.read_text().splitlines()
    (dirty.items.parent / "images-bad.csv").write_text("\n".join([*lines[:21], *lines[26:]]))
    rows = dirty.interactions.read_text().splitlines()
    (dirty.items.parent / "rows.csv").write_text("\n".join([rows[0], *(row for row in rows if row.startswith("u1,i"))]))
    strict = dataclasses.replace(
        strict, items=dirty.items.parent / "images-bad.csv", interactions=dirty.items.parent / "rows.csv"
    )
    with pytest.raises(UserError, match=r"1 file is not an image .*; items: 1 image cannot be decoded"):
        pack(strict)
    after = folder_bytes(dirty.out.parent)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"images-bad.csv", "rows.csv"}


def test_error_at_the_last_step_keeps_the_old_data_set_and_success_replaces_it(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=12)
    pack(config)
    before = folder_bytes(tmp_path)
    with pytest.raises(UserError, match="num_shards: got 13, but 12 items are left"):
        pack(dataclasses.replace(config, num_shards=13))
    assert folder_bytes(tmp_path) == before
    pack(dataclasses.replace(config, num_shards=2))
    assert [shard.samples for shard in Dataset(config.out).manifest.shards] == [6, 6]
    assert sorted(path.name for path in config.out.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]


def test_report_is_printed_with_counts_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\n[bold]u,\n" + "".join(f"u,{item}\n" for item in range(1234)))
    pack(PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "out", core=0))
    printed = capsys.readouterr().out
    for words in ("1,235", "empty item id", "row 1: user '[bold]u', item ''", "1 users, 1,234 items", "988 train"):
        assert words in printed


def test_parts_whose_items_fit_into_one_list_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_catalogue(tmp_path, num_items=140)
    pack(dataclasses.replace(config, split="cold_items"))
    assert [len(Dataset(config.out).cold_items(part)) for part in ("cold_validation", "cold_test")] == [7, 21]
    printed = capsys.readouterr().out
    always = "are in any list of 20, so that recall@20 is always 1 and selects nothing"
    assert f"cold_validation: all items that are ranked (7) {always}" in printed
    assert printed.count(always) == 1
    pack(dataclasses.replace(config, split="random"))
    assert "is always 1" not in capsys.readouterr().out
    pack(write_catalogue(tmp_path / "few", num_items=12))
    assert f"validation and test: all items that are ranked (12) {always}" in capsys.readouterr().out


def test_items_without_interactions_stay_without_a_core_and_leave_with_one(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=12)
    append(config.items, "alone,text,images/1.jpg")
    pack(dataclasses.replace(config, core=0))
    assert Dataset(config.out).item_ids[-1] == "alone"
    assert "alone" not in pl.read_csv(config.interactions)["item_id"].to_list()


def test_users_of_a_given_split_without_training_rows_are_counted_out(tmp_path: Path) -> None:
    lines = ["3\t4\t0", "1\t1\t0", "1\t2\t1", "1\t3\t2", "2\t1\t1", "2\t3\t2"]
    (tmp_path / "a.inter").write_text("\n".join(["userID\titemID\tx_label", *lines]))
    pack(PackConfig(interactions=tmp_path / "a.inter", out=tmp_path / "out", split="given", core=0))
    data = Dataset(tmp_path / "out")
    assert data.user_ids == ["1", "3"]
    assert data.item_ids == ["1", "2", "3", "4"]
    assert data.manifest.interactions == {"train": 2, "validation": 1, "test": 1}
    assert data.interactions("train").users.tolist() == [1, 0]
    assert read_report(tmp_path / "out")["interactions"]["dropped"]["user without training rows"]["count"] == 2


def test_given_split_of_baby_is_kept_to_the_row(shared_data, tmp_path: Path) -> None:
    path = shared_data("baby") / "baby.inter"
    pack(PackConfig(interactions=path, out=tmp_path / "baby", split="given", core=0))
    data = Dataset(tmp_path / "baby")
    assert (data.num_users, data.num_items, data.manifest.has_content) == (19_445, 7_050, False)
    assert data.manifest.interactions == {"train": 118_551, "validation": 20_559, "test": 21_682}
    given = pl.read_csv(path, separator="\t").filter(pl.col("x_label") == 1)
    read = data.interactions("validation")
    # Ids of that file are the numbers 0, 1, 2 and so on.
    assert Counter(zip(read.users.tolist(), read.items.tolist(), strict=True)) == Counter(
        given.select("userID", "itemID").rows()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interactions": Path("none.csv")}, "interactions: got none.csv, which is not a file"),
        ({"items": Path("none.csv")}, "items: got none.csv, which is not a file"),
        ({"images": Path("none")}, "images: got none, expected the folder"),
        ({"core": 1000}, "nothing is left to pack: 6 items read, 6 left out: fewer than 1000 interactions .*, 0 kept"),
        ({"split": "leave_one_out"}, "has no column 'timestamp'; it has 'user_id', 'item_id'"),
        ({"split": "temporal"}, "has no column 'timestamp'; it has 'user_id', 'item_id'"),
        ({"split": "given"}, "has no column 'x_label'"),
        ({"min_rating": 3.0}, "has no column 'rating'"),
        ({"items": None, "split": "cold_items"}, "split: got cold_items without --items"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_and_nothing_is_written(
    change: dict, message: str, tmp_path: Path
) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=6)
    before = folder_bytes(tmp_path)
    with pytest.raises(UserError, match=message):
        pack(dataclasses.replace(config, **change))
    assert folder_bytes(tmp_path) == before
    assert not config.out.exists()


def test_a_worker_that_is_killed_ends_packing_with_one_line() -> None:
    killed = pytest.raises(Fault, match=r"a worker process was killed.*fewer --workers")
    with killed, open_workers(1, 60, os.getpid) as pool:
        list(pool.map(os._exit, [9]))
