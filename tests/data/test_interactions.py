"""Interactions: formats, bad rows, and the k-core against a slow reference."""

import datetime
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.config import ColumnsConfig, PackConfig
from ptmrec_dist.data.packing.filters import drop_repeats, keep_core
from ptmrec_dist.data.packing.interactions import read_interactions
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables import reading
from ptmrec_dist.errors import UserError


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


_ROWS = '{"user_id": 1, "item_id": "10", "rating": 4.0}\n{"user_id": 2, "item_id": 20, "rating": 3.5}\n'
_WRITTEN = {
    "a.tsv": "user_id\titem_id\trating\r\n1\t10\t4.0\r\n2\t20\t3.5\r\n",
    "a.jsonl": _ROWS,
    "a.ndjson": _ROWS.replace("\n", "\r\n\n"),
    "a.json": _ROWS,
    "array.json": f"[{_ROWS.strip().replace(chr(10), ',')}]",
    "quoted.csv": 'user_id,note,item_id,rating\n 1 ,"a, b","10",4.0\n2,,20,3.5\n',
    "typed.csv": "user_id:token,item_id:token,rating:float\n1,10,4.0\n2,20,3.5\n",
}


@pytest.mark.parametrize("name", _WRITTEN)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("compressed", [False, True])
def test_text_and_json_are_read_alike_compressed_or_not(name: str, bom: str, compressed: bool, tmp_path: Path) -> None:
    content = (bom + _WRITTEN[name]).encode()
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert _read(path)[0] == [("1", "10", 4.0), ("2", "20", 3.5)]


@pytest.mark.parametrize("separator", [";", "|", "tab", r"\t", "::", ", "])
@pytest.mark.parametrize("header", [True, False])
def test_a_text_file_is_read_with_any_separator_with_or_without_a_header(
    separator: str, header: bool, tmp_path: Path
) -> None:
    between = "\t" if separator in ("tab", r"\t") else separator
    lines = [["user_id", "item_id", "rating"]] * header + [["1", "10", "4.0"], ["2", "20", "3.5"]]
    (tmp_path / "ratings.dat").write_text("".join(f"{between.join(line)}\r\n" for line in lines))
    columns = ColumnsConfig() if header else ColumnsConfig(user="1", item="2", rating="3")
    rows, _ = _read(tmp_path / "ratings.dat", separator=separator, header=header, columns=columns)
    assert rows == [("1", "10", 4.0), ("2", "20", 3.5)]


def test_the_comma_is_a_decimal_point_where_semicolons_separate(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id;item_id;rating\n1;10;3,5\n1;11;1.234,5\n")
    rows, account = _read(tmp_path / "a.csv", separator=";", min_rating=0)
    assert rows == [("1", "10", 3.5)]
    assert account["dropped"]["rating is not a number"]["examples"] == ["row 2: user '1', item '11', rating '1.234,5'"]


@pytest.mark.parametrize("true", ["true", "True", "TRUE"])
def test_truth_values_are_ratings_of_one_and_zero(true: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"user_id,item_id,liked\n1,10,{true}\n1,11,False\n1,12,yes\n")
    rows, account = _read(tmp_path / "a.csv", columns=ColumnsConfig(rating="liked"), min_rating=1)
    assert rows == [("1", "10", 1.0)]
    assert {reason: dropped["count"] for reason, dropped in account["dropped"].items()} == {
        "rating is not a number": 1,
        "rating below 1": 1,
    }


def test_labels_may_be_floats(tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_text("userID\titemID\tx_label\n1\t10\t0.0\n1\t11\t2.0\n1\t12\t0.5\n")
    rows, account = _read(tmp_path / "a.inter", split="given")
    assert rows == [("1", "10", 0), ("1", "11", 2)]
    assert account["dropped"]["x_label is not 0, 1 or 2"]["examples"] == ["row 3: user '1', item '12', x_label '0.5'"]


def test_values_that_are_not_needed_and_cannot_be_read_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,10,5\n1,11,July 2014\n1,12,\n")
    assert [row[2] for row in _read(tmp_path / "a.csv")[0]] == [5.0, None, None]
    assert "1 of 3 values of timestamp cannot be read and are packed empty; the first is 'July 2014'" in caplog.text


def test_seconds_and_milliseconds_in_one_column_are_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,10,1500000000\n1,11,1500000001000\n")
    with pytest.raises(
        UserError, match=r"a\.csv: column 'timestamp' holds seconds \(1500000000 in row 1\) and millis.*row 2"
    ):
        _read(tmp_path / "a.csv")


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


def test_times_may_be_numbers_or_dates_in_one_column(tmp_path: Path) -> None:
    good = ["1706788800.5", "2024-02-01 12:00:00.5", "2024-02-01T12:00:00.5", "2024-02-01T14:00:00.5+02:00"]
    texts = [*good, "yesterday"]
    pl.DataFrame({"user_id": texts, "item_id": texts, "timestamp": texts}).write_csv(tmp_path / "a.csv")
    rows, _ = _read(tmp_path / "a.csv", split="leave_one_out")
    assert rows == [(text, text, _NOON.replace(tzinfo=datetime.UTC).timestamp()) for text in good]


def test_the_column_tells_day_from_month_or_is_refused(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp", "1,10,02/01/2024", "1,11,2024/02/01"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a\.csv: column 'timestamp' holds dates .* \(02/01/2024 in row 1\)"):
        _read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("\n".join([*lines, "2,10,02/13/2024"]))
    first, same, later = (row[2] for row in _read(tmp_path / "a.csv")[0])
    assert first == same == later - 12 * 86400 == datetime.datetime(2024, 2, 1, tzinfo=datetime.UTC).timestamp()


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
    ids = pl.Enum(list(map(str, range(40))))
    rows = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").with_row_index("row")
    rows = rows.with_columns(pl.col("user_id", "item_id").cast(pl.String).cast(ids))
    tally = Tally("interactions", rows.height)
    kept = keep_core(rows, tally, core)
    assert kept.select(pl.col("user_id", "item_id").to_physical()).rows() == expected
    assert tally.kept == len(expected)


def test_of_a_repeated_pair_the_earliest_stays_whatever_the_order_of_rows() -> None:
    times = [30.0, None, 10.0, 20.0, 10.0]
    rows = pl.DataFrame({"row": range(5), "timestamp": times}).with_columns(
        user_id=pl.lit("u").cast(pl.Enum(["u"])), item_id=pl.lit("i").cast(pl.Enum(["i"]))
    )
    for order, kept in [([0, 1, 2, 3, 4], 2), ([4, 3, 2, 1, 0], 4), ([1, 0, 3, 2], 2), ([1, 3], 3)]:
        assert drop_repeats(rows[order], Tally("interactions", len(order)))["row"].to_list() == [kept]


def test_of_a_repeated_pair_the_first_row_that_is_rated_well_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating\n1,1,2\n1,1,5\n1,1,4\n")
    rows, tally = read_interactions(
        PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "out", min_rating=3, core=0)
    )
    rows = rows.with_columns(pl.col("user_id", "item_id").cast(pl.Enum(["1"])))
    assert drop_repeats(rows, tally)["rating"].to_list() == [5.0]
    assert tally.kept == 1


def test_one_column_cannot_be_user_and_item(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("user_id,item_id\nu,i\n")
    columns = ColumnsConfig(user="item_id")
    with pytest.raises(UserError, match=r"columns.user: got 'item_id', which is columns.item too"):
        read_interactions(PackConfig(interactions=tmp_path / "i.csv", out=tmp_path / "o", columns=columns))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "dat"])
def test_rows_are_the_same_in_batches_whatever_comes_late_in_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"{user}.0", f"i{user % 3}", str(rating)) for user, rating in zip(range(40), [5, 1] * 20, strict=True)]
    log = pl.DataFrame(pairs, schema=["user_id", "item_id", "rating"], orient="row")
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        log.write_parquet(path, row_group_size=7)
    elif kind == "jsonl":
        lines = [f'{{"user_id": {user}, "item_id": "{item}", "rating": {rating}}}' for user, item, rating in pairs]
        path.write_text("\n".join([*lines[:-1], lines[-1].replace(": 1}", ': "1"}')]))
    else:
        path.write_text(log.write_csv().replace(",", "::" if kind == "dat" else ","))
    settings = {"min_rating": 2, "separator": "::" if kind == "dat" else None}
    whole = _read(path, **settings)
    monkeypatch.setattr(reading, "_BATCH", 8)
    assert len(list(reading.Table(path, "interactions", settings["separator"]).batches(["user_id"]))) > 1
    assert _read(path, **settings) == whole
    assert whole[0] == [(str(user), f"i{user % 3}", 5.0) for user in range(0, 40, 2)]
    assert whole[1]["dropped"]["rating below 2"]["examples"][0] == "row 2: user '1', item 'i1', rating '1'"


def test_a_malformed_row_is_refused_however_late_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BATCH", 8)
    lines = ["user_id,item_id", *(f"u{row},i" for row in range(60)), "u,i,x"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a\.csv: row 61 has 3 columns, the first line 2"):
        _read(tmp_path / "a.csv")
