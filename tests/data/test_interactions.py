"""Interactions: formats, bad rows, and the k-core against a slow reference."""

import datetime
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.config import ColumnsConfig, PackConfig
from ptmrec_dist.data.ids import index_of, sort_ids
from ptmrec_dist.data.interactions import keep_core, read_interactions
from ptmrec_dist.data.report import Tally


def _read(path: Path, **settings) -> tuple[list[tuple], dict]:
    rows, tally = read_interactions(PackConfig(interactions=path, out=path.parent / "out", **settings))
    return rows.drop("row").rows(), tally.to_dict()


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    csv = b"user_id,item_id,rating\n1,10,4.0\n2,20,3.5\n"
    (tmp_path / "a.csv").write_bytes(csv)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv))
    pl.DataFrame({"user_id": [1, 2], "item_id": [10, 20], "rating": [4.0, 3.5]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "mmrec.inter").write_text("userID\titemID\trating\n1\t10\t4.0\n2\t20\t3.5\n")
    (tmp_path / "recbole.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t10\t4.0\n2\t20\t3.5\n")
    for path in sorted(tmp_path.iterdir()):
        assert _read(path)[0] == [("1", "10", 4.0), ("2", "20", 3.5)], path.name


def test_columns_go_by_the_names_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,who,what\nx,1,10\n")
    columns = ColumnsConfig(user="who", item="what")
    assert _read(tmp_path / "a.csv", columns=columns)[0] == [("1", "10")]


def test_bad_rows_are_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    lines = ["user_id,item_id,rating,x_label", "1,10,5,0", ",10,5,0", "1,,5,0", "1,11,high,0", "1,12,2,0", "1,13,5,3"]
    (tmp_path / "a.csv").write_text("\n".join([*lines, "1,14,nan,0", "1,15,5,", "2,10,3,2"]))
    rows, account = _read(tmp_path / "a.csv", min_rating=3, split="given")
    assert rows == [("1", "10", 5.0, 0), ("2", "10", 3.0, 2)]
    assert {reason: dropped["count"] for reason, dropped in account["dropped"].items()} == {
        "empty user id": 1,
        "empty item id": 1,
        "rating is not a number": 2,
        "rating below 3": 1,
        "x_label is not 0, 1 or 2": 2,
    }
    assert account["read"] == 9
    assert account["kept"] == 2


_NOON = datetime.datetime(2024, 2, 1, 12, 0, 0, 500_000)


def test_times_may_be_numbers_or_iso_dates_but_nothing_ambiguous(tmp_path: Path) -> None:
    good = ["1706788800.5", "2024-02-01 12:00:00.5", "2024-02-01T12:00:00.5", "2024-02-01T14:00:00.5+02:00"]
    texts = [*good, "01/02/2024"]
    pl.DataFrame({"user_id": texts, "item_id": texts, "timestamp": texts}).write_csv(tmp_path / "a.csv")
    rows, _ = _read(tmp_path / "a.csv", split="leave_one_out")
    assert rows == [(text, text, _NOON.replace(tzinfo=datetime.UTC).timestamp()) for text in good]


@pytest.mark.parametrize("zone", [None, datetime.UTC])
def test_times_of_a_parquet_file_may_be_of_a_date_type(zone: datetime.tzinfo | None, tmp_path: Path) -> None:
    times = [_NOON.replace(tzinfo=zone)]
    pl.DataFrame({"user_id": ["1"], "item_id": ["2"], "timestamp": times}).write_parquet(tmp_path / "a.parquet")
    rows, _ = _read(tmp_path / "a.parquet", split="leave_one_out")
    assert rows == [("1", "2", _NOON.replace(tzinfo=datetime.UTC).timestamp())]


@pytest.mark.parametrize("core", range(6))
def test_core_equals_removing_rare_users_and_items_until_none_is_left(core: int) -> None:
    rng = np.random.default_rng(core)
    pairs = list(dict.fromkeys(zip(rng.integers(0, 30, 150).tolist(), rng.integers(0, 40, 150).tolist(), strict=True)))
    expected = pairs
    while True:
        users, items = Counter(user for user, _ in expected), Counter(item for _, item in expected)
        smaller = [(user, item) for user, item in expected if users[user] >= core and items[item] >= core]
        if smaller == expected:
            break
        expected = smaller
    rows = pl.DataFrame(pairs, schema={"user_index": pl.Int64, "item_index": pl.Int64}, orient="row")
    rows = rows.with_columns(user_id=pl.col("user_index"), item_id=pl.col("item_index")).with_row_index("row")
    tally = Tally("interactions", rows.height)
    kept = keep_core(rows, tally, core)
    assert kept.select("user_index", "item_index").rows() == expected
    assert tally.kept == len(expected)


def test_of_a_repeated_pair_the_first_row_that_is_rated_well_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating\n1,1,2\n1,1,5\n1,1,4\n")
    rows, tally = read_interactions(
        PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "out", min_rating=3, core=0)
    )
    indexed = rows.with_columns(user_index=pl.lit(0, pl.Int64), item_index=pl.lit(0, pl.Int64))
    assert keep_core(indexed, tally, 0)["rating"].to_list() == [5.0]
    assert tally.kept == 1


def test_ids_are_ordered_by_number_only_if_all_are_numbers() -> None:
    assert sort_ids(pl.Series(["10", "9", "10", "-1"])).to_list() == ["-1", "9", "10"]
    assert sort_ids(pl.Series(["10", "9", "b"])).to_list() == ["10", "9", "b"]


def test_index_is_the_position_in_the_list() -> None:
    assert index_of(pl.Series(["c", "a", "c"]), pl.Series(["a", "b", "c"])).to_list() == [2, 0, 2]
