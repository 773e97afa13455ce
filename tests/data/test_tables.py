"""Files that cannot be read end in one line that names the file and what is wrong with it."""

import gzip
import json
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptmrec_dist import cli
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.errors import UserError

_BAD_FILES = {
    "empty.csv": (b"", "is empty"),
    "sheet.xlsx": (b"PK\x03\x04", "expected a file that ends in .*; save the sheet as .csv"),
    "parquet.csv": (b"PAR1\x15\x04", "is a Parquet file; rename it to end in .parquet"),
    "parquet.jsonl": (b"PAR1\x15\x04", "is a Parquet file; rename it to end in .parquet"),
    "text.parquet": (b"a,b\n1,2\n", "is not a Parquet file; rename it by its format, such as .csv"),
    "header.csv": (b"a,b\n", "has a header but no rows"),
    "columns.csv": (b"x,y\n1,2\n", "has no column 'a', 'b'; it has 'x', 'y'"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "row 2 has 3 columns, the first line 2: '1,2,3'"),
    "nearest.csv": (b"a,bb\n1,2\n", "has no column 'b'; it has 'a', 'bb'; the nearest is 'bb'; rename"),
    "semicolons.csv": (
        b"a;b\n1;2\n",
        "one column found, 'a;b'; is it separated by ';'\\? then add --separator ';'",
    ),
    "comma.inter": (b"a:token,b:token\n1,2\n", "one column found, 'a:token,b:token'; is it separated by ','"),
    "comment.csv": (
        b"# made by a tool\na,b\n1,2\n",
        "one column found, '# made by a tool', without a ','; .* or remove lines before the header",
    ),
    "comment.tsv": (b"% made by a tool\na\tb\n1\t2\n", "'% made by a tool', .* remove lines before the header"),
    "page.csv": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "one column found, '<!DOCTYPE html>', without"),
    "blanks.csv": (b"a b\n1 2\n", "is it separated by ' '"),
    "macintosh.csv": (
        b"a,b\r1,2\r3,4\r",
        r"its lines end in carriage returns alone; convert the file.* by tr '\\r' '\\n'",
    ),
    "data.csv": (
        b"u1,i1,2.0\n",
        "has no column 'a', 'b'; .*if the first row is not a header, add --header false",
    ),
    "header.tsv": ("a\té\n1\t2\n".encode("latin-1"), "line 1 has byte 0xe9 at position 2"),
    "ratings.dat": (b"a::b\n1::2\n", "expected a file that ends in .*; for other text files give --separator"),
    "latin.csv": ("a,b\né,2\n".encode("latin-1"), "line 2 has byte 0xe9 at position 0, which is not UTF-8"),
    "broken.csv.gz": (b"\x1f\x8b\x08\x00nonsense", "cannot read"),
    "broken.jsonl": (b'{"a": 1, "b": 2}\n{"a": 1, "b"\n', 'line 2 is not a JSON object: \'{"a": 1, "b"\''),
    "python.json": (b"{'a': 1, 'b': 2}\n{'a': 1, 'b'\n", "line 2 is not a JSON object"),
    "lists.jsonl": (b'{"a": 1, "b": [2]}\n', r"column 'b' has type List\(Int64\); expected one text"),
    "table.xlsx": (b"a,b\n1,2\n", "expected a file that ends in .csv"),
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    content, message = _BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Table(tmp_path / name, "items").read(required=["a", "b"])
    assert str(error.value).startswith("items: ")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        (["pack", "--interactions"], "user;item\n1;2\n", {"--separator"}),
        (["pack", "--interactions"], "customer,sku\n1,2\n", {"--columns.user", "--columns.item"}),
        (["pack", "--interactions", "good.csv", "--items"], "item;text\n1;2\n", {"--items_separator"}),
        (["pack", "--interactions", "good.csv", "--items"], "1;2\n3;4\n", {"--items_separator"}),
        (["pack", "--interactions"], "1,2\n3,4\n", {"--header", "--columns.user", "--columns.item"}),
        (["pack", "--interactions", "good.csv", "--items"], "sku,text\n1,2\n", {"--columns.items_id"}),
        (["pack", "--split", "given", "--interactions"], "user_id,item_id\n1,2\n", set()),
        (["download", "--items"], "item;image_url\n1;2\n", {"--separator"}),
        (["download", "--items"], "sku,image_url\n1,2\n", {"--columns.item"}),
    ],
)
def test_a_message_names_options_that_its_command_has(
    command: list[str],
    text: str,
    expected: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text("user_id,item_id\n1,2\n")
    Path("bad.csv").write_text(text)
    assert cli.main([*command, "bad.csv", "--out", "out"]) == 2
    assert set(re.findall(r"--[a-z_.]+", capsys.readouterr().err)) == expected
    with pytest.raises(SystemExit):
        cli.main([command[0], "--help"])
    assert expected <= set(re.findall(r"--[a-z_.]+", capsys.readouterr().out))


@pytest.mark.parametrize("name", ["nothing.csv", "."])
def test_what_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        Table(tmp_path / name, "items")


def test_values_come_as_text_without_blanks_and_nothing_is_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffa,b,c\n 007 ,"two\nlines",1\n,x,\n')
    table = Table(tmp_path / "t.csv", "items").read(required=["a", "b"], optional=["c", "d"])
    assert table.rows() == [(1, "007", "two\nlines", "1"), (2, "", "x", "")]


def test_what_is_read_by_a_separator_of_several_characters_is_checked_as_well(tmp_path: Path) -> None:
    (tmp_path / "t.dat").write_text("a::b\n1::2\n1::2::3\n")
    with pytest.raises(UserError, match="row 2 has 3 columns, the first line 2: '1::2::3'"):
        Table(tmp_path / "t.dat", "items", separator="::")


def test_values_of_every_type_are_written_as_text(tmp_path: Path) -> None:
    berlin = datetime(2024, 2, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    frame = pl.DataFrame(
        {
            "float": [1001.0, float("nan")],
            "large": [2.0**60, 0.5],
            "decimal": [Decimal("1001.00"), Decimal("0.50")],
            "categorical": pl.Series(["a", None], dtype=pl.Categorical),
            "time": [berlin, None],
            "list": [["a", None, " b"], []],
            "deep": [[["a"], ["b", "c"]], None],
            "array": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", "items").read(frame.columns, lists=["list", "deep", "array"])
    times = ("2024-02-01 11:00:00.000000+00:00", "")
    assert table.drop("row", "time").rows() == [
        ("1001", "1.152921504606847e+18", "1001", "a", "a  b", "a b c", "1 2"),
        ("", "0.5", "0.50", "", "", "", "3 4"),
    ]
    assert tuple(table["time"]) == times


def test_lists_in_json_are_joined_however_they_are_mixed_with_texts(tmp_path: Path) -> None:
    values = [["a", None, ["b"]], "plain", "[LIMITED] a", [], None, {}, 3.5]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"a": 1, "b": value}) + "\n" for value in values))
    table = Table(tmp_path / "t.jsonl", "items").read(["b"], lists=["b"])
    assert table["b"].to_list() == ["a b", "plain", "[LIMITED] a", "", "", "", "3.5"]


@pytest.mark.parametrize("values", [["a", {"x": 1}], ["a", ["b", {"x": 1}]], [[], [{"x": 1}]]])
def test_an_object_in_a_text_is_refused_with_column_row_and_value(values: list[object], tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"a": 1, "b": value}) + "\n" for value in values))
    with pytest.raises(UserError, match=r"t\.jsonl: column 'b' \(type .*\) holds an object in row 2: \{\"x\": 1\}"):
        Table(tmp_path / "t.jsonl", "items").read(["b"], lists=["b"])


_MIXED = [
    {"a": "x", "b": ["one", ["two", ["three"]], None], "c": 3.0},
    {"a": 7, "b": "four", "c": float("nan")},
    {"a": None, "b": [], "c": "2"},
]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json"])
def test_json_columns_may_hold_values_of_several_types(name: str, tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, _MIXED))
    content = (json.dumps(_MIXED, indent=1) if name == "t.json" else lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    table = Table(tmp_path / name, "items").read(required=["a", "b", "c"], lists=["b"])
    assert table.rows() == [(1, "x", "one two three", "3"), (2, "7", "four", ""), (3, "", "", "2")]
    with pytest.raises(UserError, match=r"column 'b' holds .* in row 1; expected one text, number or time per row"):
        Table(tmp_path / name, "items").read(required=["a", "b", "c"])


def test_a_broken_json_array_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(_MIXED, indent=1)[:-10])
    with pytest.raises(UserError, match=r"it is not a JSON array: .* line \d+ column \d+"):
        Table(tmp_path / "t.json", "items")
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(UserError, match=r"t.json has no rows; expected at least one"):
        Table(tmp_path / "t.json", "items")


def test_blank_lines_between_rows_count_as_little_with_a_long_separator(tmp_path: Path) -> None:
    (tmp_path / "t.dat").write_text("a::b\n1::2\n\n3::4\n\n")
    assert Table(tmp_path / "t.dat", "items", "::").read(required=["a", "b"]).height == 2


def test_a_separator_may_be_any_character(tmp_path: Path) -> None:
    (tmp_path / "t.dat").write_text("aéb\n1é2\n")
    assert Table(tmp_path / "t.dat", "items", "é").read(required=["a", "b"]).rows() == [(1, "1", "2")]


@pytest.mark.parametrize(("required", "optional"), [(["a", "b"], []), (["b"], ["a"])])
def test_a_column_that_is_read_and_is_there_twice_is_refused(
    required: list[str], optional: list[str], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    assert Table(tmp_path / "t.csv", "items").read(["b"])["b"].item() == "2"
    with pytest.raises(UserError, match="has several columns 'a'; expected one"):
        Table(tmp_path / "t.csv", "items").read(required, optional)


def test_names_of_columns_come_without_blanks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a, b , c:token\n1, 2,3\n")
    assert Table(tmp_path / "t.csv", "items").read(["a", "b", "c"]).rows() == [(1, "1", "2", "3")]


def test_lines_of_python_literals_are_read_as_json(tmp_path: Path) -> None:
    rows = [{"a": "it's", "b": ["x", "y"], "c": True}, {"a": 'say "w"', "b": "z", "c": None}]
    (tmp_path / "t.json").write_text("".join(f"{row!r}\n" for row in rows))
    table = Table(tmp_path / "t.json", "items").read(["a", "b", "c"], lists=["b"])
    assert table.rows() == [(1, "it's", "x y", "true"), (2, 'say "w"', "z", "")]


@pytest.mark.parametrize("zone", ["UTC", "+05:30", "-03:00", "Asia/Kolkata"])
def test_times_with_a_zone_are_the_same_instant_in_utc(zone: str, tmp_path: Path) -> None:
    times = pa.array([datetime(2017, 7, 14, 2, 40)], pa.timestamp("ns", zone))
    pq.write_table(pa.table({"a": times, "b": [1]}), tmp_path / "t.parquet")
    assert Table(tmp_path / "t.parquet", "items").read(["a"])["a"].item().startswith("2017-07-14 02:40:00.000000")
    (batch,) = Table(tmp_path / "t.parquet", "items").batches(["a", "b"])
    assert batch["a"].item().endswith("+00:00")


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for part, values in enumerate([[1, 2], [3]]):
        pl.DataFrame({"a": values}).write_parquet(tmp_path / f"t/part-0000{part}.snappy.parquet")
    (tmp_path / "t/_SUCCESS").touch()
    assert Table(tmp_path / "t", "items").read(["a"]).rows() == [(1, "1"), (2, "2"), (3, "3")]


def test_folders_that_name_a_value_are_columns_of_a_table_of_parquet_files(tmp_path: Path) -> None:
    table = tmp_path / "run=3" / "t"
    for day, shop, values in (
        ("2017-07-14", "007", [1, 2]),
        ("2017-07-15", "a%2Fb", [3]),
        ("__HIVE_DEFAULT_PARTITION__", "x=y", [4]),
    ):
        folder = table / f"day={day}" / f"shop%3Did={shop}"
        folder.mkdir(parents=True)
        pl.DataFrame({"a": values}).write_parquet(folder / "part-00000.parquet")
    (table / "_delta_log").mkdir()
    pl.DataFrame({"other": [1]}).write_parquet(table / "_delta_log" / "1.checkpoint.parquet")
    rows = [("1", "2017-07-14", "007"), ("2", "2017-07-14", "007"), ("3", "2017-07-15", "a/b"), ("4", "", "x=y")]
    assert Table(table, "items").read(["a", "day", "shop=id"]).drop("row").rows() == rows
    batches = Table(table, "interactions").batches(["a", "day", "shop=id"])
    assert pl.concat(batches).drop("row").rows() == rows
    assert Table(table, "items").columns == ["a", "day", "shop=id"]
