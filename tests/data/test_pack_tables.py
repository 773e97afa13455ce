"""Packing of users' tables: the earliest pair, time order, parts without rows, and messages that show the cause."""

import re
from pathlib import Path

import polars as pl
import pytest

from ptmrec_dist.config import ColumnsConfig, PackConfig, Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED
from tests.data.small_catalogue import folder_bytes, read_report, write_catalogue


def _rewrite(config: PackConfig, items: dict[str, pl.Expr], interactions: dict[str, pl.Expr]) -> None:
    """Change columns of a data set's tables."""
    assert config.items is not None
    for path, columns in ((config.items, items), (config.interactions, interactions)):
        pl.read_csv(path, infer_schema=False).with_columns(**columns).write_csv(path)


_NUMBER = pl.col("item_id").str.slice(1)


@pytest.mark.parametrize("newest_first", [False, True])
def test_leave_one_out_holds_out_the_same_items_whatever_the_order_of_rows(newest_first: bool, tmp_path: Path) -> None:
    # i0 is repeated last, so that the first row of the pair in the file is another; i4 and i5 have the same time.
    rows = [("u", f"i{item}", min(item, 4)) for item in range(6)] + [("u", "i0", 9)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    (frame.reverse() if newest_first else frame).write_csv(tmp_path / "a.csv")
    pack(PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "out", split="leave_one_out", core=0))
    data = Dataset(tmp_path / "out")
    found = {part: [data.item_ids[item] for item in data.interactions(part).items] for part in data.parts}
    assert found == {"train": ["i0", "i1", "i2", "i3"], "validation": ["i4"], "test": ["i5"]}


def _write_log(path: Path, rows: list[tuple[str, str, object]]) -> Path:
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row", strict=False).write_csv(path)
    return path


def test_a_temporal_split_drops_users_and_keeps_items_that_are_new_after_the_cut_and_counts_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"u{number % 4}", f"i{number // 2}", number) for number in range(20)]  # 0 to 15 train, 16 and 17 validate
    log = _write_log(tmp_path / "a.csv", [*rows[:17], ("late", "i1", 17), ("u0", "i5", 18), rows[19]][::-1])
    pack(PackConfig(interactions=log, out=tmp_path / "out", split="temporal", core=0))
    data = Dataset(tmp_path / "out")
    found = {
        part: [
            (data.user_ids[user], data.item_ids[item])
            for user, item in zip(*(column.tolist() for column in (read.users, read.items)), strict=True)
        ]
        for part in data.parts
        for read in [data.interactions(part)]
    }
    train = [(user, item) for user, item, _ in rows[:16]]
    assert found == {"train": train, "validation": [("u0", "i8")], "test": [("u0", "i5"), ("u3", "i9")]}
    report = read_report(tmp_path / "out")
    assert report["interactions"]["dropped"]["user without training rows"]["count"] == 1
    assert report["interactions"]["incomplete"]["item without training rows"]["count"] == 2
    assert report["items"]["incomplete"] == {"no training rows": {"count": 2, "examples": ["item 'i8'", "item 'i9'"]}}
    for account, kept in ((report["interactions"], 19), (report["items"], 10)):
        assert account["kept"] == kept == account["read"] - sum(drop["count"] for drop in account["dropped"].values())
    assert "of them item without training rows" in capsys.readouterr().out


def test_a_temporal_split_leaves_out_rows_without_a_time_and_counts_them(tmp_path: Path) -> None:
    log = _write_log(
        tmp_path / "a.csv", [(f"u{row % 4}", f"i{row % 7}", row if row % 9 else None) for row in range(28)]
    )
    pack(PackConfig(interactions=log, out=tmp_path / "out", split="temporal", core=0))
    (reason, entry), *_ = read_report(tmp_path / "out")["interactions"]["dropped"].items()
    assert reason.startswith("time is neither a number nor a date")
    assert entry["count"] == 4
    with pytest.raises(UserError, match="bad input: interactions: 4 time is neither a number nor a date"):
        pack(PackConfig(interactions=log, out=tmp_path / "other", split="temporal", core=0, on_error="fail"))


def test_a_temporal_split_at_one_time_is_refused_and_what_was_packed_stays(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    config = PackConfig(interactions=log, out=tmp_path / "out", split="temporal", core=0)
    _write_log(log, [(f"u{row % 4}", f"i{row % 7}", row) for row in range(28)])
    pack(config)
    before = folder_bytes(config.out)
    _write_log(log, [(f"u{row % 4}", f"i{row % 7}", "2017-07-14") for row in range(28)])
    with pytest.raises(UserError, match=r"split: got temporal for interactions at 1 time, .*--columns\.time"):
        pack(config)
    assert folder_bytes(config.out) == before


def test_packed_rows_are_in_time_order_and_a_random_split_is_that_of_the_file_without_times(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [user for user in range(5) for _ in range(10)], "item_id": list(range(10)) * 5})
    times = pl.Series("timestamp", [(row * 37) % 50 for row in range(50)])
    packed = []
    for name, table in (("without", frame), ("with", frame.with_columns(times))):
        table.write_csv(tmp_path / f"{name}.csv")
        pack(PackConfig(interactions=tmp_path / f"{name}.csv", out=tmp_path / name, core=0))
        packed.append(pl.read_parquet(tmp_path / name / "interactions/train.parquet"))
    without, with_times = packed
    assert with_times["timestamp"].is_sorted()
    pairs = ["user_index", "item_index"]
    assert with_times.select(pairs).sort(pairs).equals(without.select(pairs).sort(pairs))


def test_parts_without_rows_are_absent_and_stage_1_needs_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\n" + "".join(f"u{user},i{user % 7}\n" for user in range(50)))
    pack(PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "out", core=0))
    assert "50 train, none for validation, none for test" in capsys.readouterr().out.replace("\n", "")
    assert Dataset(tmp_path / "out").manifest.interactions == {"train": 50}
    assert [path.name for path in (tmp_path / "out/interactions").iterdir()] == ["train.parquet"]
    stage1 = Stage1Config(shards=tmp_path / "out", out=tmp_path / "run", recommender="bpr", tracking=UNTRACKED)
    with pytest.raises(UserError, match="has no validation interactions, only train; pack users with 3 interactions"):
        train_stage1(stage1)
    assert not (tmp_path / "run").exists()


def test_ids_that_lost_zeros_or_gained_a_fraction_find_their_items(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=12)
    _rewrite(config, {"item_id": "0" + _NUMBER.str.zfill(3)}, {"item_id": _NUMBER})
    pack(config)
    assert Dataset(config.out).item_ids == [f"0{item:03d}" for item in range(12)]
    assert "unknown item" not in read_report(config.out)["interactions"]["dropped"]
    assert "12 item ids differ from the catalogue's only by leading zeros or .0 and are matched" in caplog.text
    _rewrite(
        config, {"item_id": pl.col("item_id").str.strip_chars_start("0").replace("", "0")}, {"item_id": _NUMBER_FLOAT}
    )
    pack(config)
    assert Dataset(config.out).item_ids == [str(item) for item in range(12)]


_NUMBER_FLOAT = pl.col("item_id") + ".0"


@pytest.mark.parametrize(
    ("items", "interactions", "message"),
    [
        (
            {},
            {"item_id": "x" + _NUMBER},
            r"unknown item \(row 1: .* item 'x\d+'; row 2: .*; the catalogue has 'i0', 'i1'\)",
        ),
        (
            {"image": "http://example.org/" + pl.col("image")},
            {},
            r"6 left out: image is a URL \(row 1: .*; row 2: .*; images are read from files",
        ),
        (
            {"image": "other/" + pl.col("image")},
            {},
            r"6 left out: image file is missing \(row 1.*row 2.*looked for \S+/catalogue/other/images/0\.jpg and \S+/1\.jpg\)",
        ),
        (
            {},
            {"timestamp": pl.lit("July 2014")},
            r"time is neither a number nor a date such as 2017-07-14 03:59 \(row 1: .*, time 'July 2014'; row 2: ",
        ),
    ],
)
def test_nothing_left_shows_two_examples_of_each_reason_and_sums_close(
    items: dict[str, pl.Expr], interactions: dict[str, pl.Expr], message: str, tmp_path: Path
) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=6)
    _rewrite(config, items, interactions)
    split = "leave_one_out" if "timestamp" in interactions else "random"
    with pytest.raises(UserError, match=f"nothing is left to pack: .*{message}") as error:
        pack(PackConfig(items=config.items, interactions=config.interactions, out=config.out, split=split, workers=1))
    for read, left_out, kept in re.findall(r"(\d+) \w+ read, (?:(\d+) .*?\), )?(\d+) kept", str(error.value)):
        assert int(read) == int(left_out or 0) + int(kept)
    assert not config.out.exists()


def test_a_named_column_that_is_absent_is_refused_though_it_is_not_needed(tmp_path: Path) -> None:
    config = write_catalogue(tmp_path / "catalogue", num_items=6)
    with pytest.raises(UserError, match=r"interactions: .* has no column 'when'; it has 'user_id', 'item_id'"):
        pack(PackConfig(interactions=config.interactions, out=config.out, columns=ColumnsConfig(time="when")))
