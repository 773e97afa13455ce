"""Text tables with quotes that polars refuses are read as Python's `csv` reads them."""

import csv
import gzip
import io
import random
from pathlib import Path

import pytest

from ptmrec_dist.data.tables import reading, text_rows
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.errors import UserError

_INSIDE = 'a,b,c\n1,5" pipe,x\n2,plain,"q, ""w"""\n\n3,6" pipe\n4,"two\nlines",\n'


def _read(path: Path, **settings) -> list[tuple[str, ...]]:
    return Table(path, "items", **settings).read(["b", "a"], ["c"]).rows()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_quotes_inside_of_values_are_characters_as_any(separator: str, header: bool, tmp_path: Path) -> None:
    text = _INSIDE.replace(", ", "; ").replace(",", separator).replace("; ", ", ")
    (tmp_path / "t.csv").write_text(text if header else text.partition("\n")[2])
    table = Table(tmp_path / "t.csv", "items", separator, header)
    names = ["a", "b", "c"] if header else ["1", "2", "3"]
    read = [row[1:] for row in table.read(names).rows()]
    expected = [(row + [""] * 3)[:3] for row in csv.reader(io.StringIO(text), delimiter=separator)][1:]
    assert read == [tuple(row) for row in expected]
    assert [row[1] for row in read] == ['5" pipe', "plain", "", '6" pipe', "two\nlines"]


def test_in_a_tab_separated_file_quotes_that_do_not_pair_up_are_characters_as_any(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('a\tb\n1\t"Wow" he said\n2\t"never closed\n3\t5" pipe\n4\t"whole"\n')
    texts = ['"Wow" he said', '"never closed', '5" pipe', '"whole"']
    assert [row[1] for row in _read(tmp_path / "t.tsv")] == texts


def test_in_a_tab_separated_file_quotes_that_a_quoted_value_holds_bare_are_kept(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('a\tb\n1\t"The "best" one"\n2\t""bare""\n3\t"whole"\n')
    assert [row[1] for row in _read(tmp_path / "t.tsv")] == ['"The "best" one"', '""bare""', '"whole"']
    (batch,) = Table(tmp_path / "t.tsv", "items").batches(["b"])
    assert batch["b"].to_list() == ['"The "best" one"', '""bare""', '"whole"']
    (tmp_path / "t.tsv").write_text('a\tb\n1\t"The "best" one"\n2\t3\t4\n')
    with pytest.raises(UserError, match="cannot read"):
        _read(tmp_path / "t.tsv")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**20])
def test_files_are_read_as_the_csv_module_reads_them_or_refused(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "_CHUNK", chunk)
    generator, path, refused = random.Random(chunk), tmp_path / "t.csv", 0
    for _ in range(60):
        values = ["".join(generator.choices('ab ",', k=generator.randrange(7))).strip() for _ in range(6)]
        written = [generator.choice((f'"{text}"', text, '"{}"'.format(text.replace('"', '""')))) for text in values]
        text = "a,b,c\n" + "".join(f"{row},{written[row]},{written[row + 3]}\n" for row in range(3))
        path.write_text(text)
        try:
            rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
        except csv.Error:
            rows = []
        if rows and all(len(row) <= 3 for row in rows):
            expected = [tuple(value.strip() for value in [*row, "", ""][:3]) for row in rows[1:]]
            assert [row[1:] for row in Table(path, "items").read(["a", "b", "c"]).rows()] == expected, text
        else:
            refused += 1
            with pytest.raises(UserError, match="items: "):
                Table(path, "items").read(["a", "b", "c"])
    assert 0 < refused < 60


def test_rows_with_quotes_inside_follow_those_that_were_read_before_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BATCH", 8)
    values = [f"v{row}" for row in range(60)] + ['5" pipe', "last"]
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{row},{value}\n" for row, value in enumerate(values)))
    batches = list(Table(tmp_path / "t.csv", "items").batches(["a", "b"]))
    assert [row for batch in batches for row in batch.rows()] == [
        (row + 1, str(row), value) for row, value in enumerate(values)
    ]


_REFUSED = {
    'a,b\n1,2\n3,"open\n4,5\n': r"row 2 has a quote that does not end its value \(unexpected end of data\)",
    'a,b\n1,2\n3,"x" y\n4,5\n': r"row 2 has a quote that does not end its value .*; write quotes inside of quoted values twice",
    'a,b\n1,5" pipe\n3,"the "best" one"\n': r"row 2 has a quote that does not end its value .*; write quotes inside of",
    'a,b\n"1","say "hi""\n': r"row 1 has a quote that does not end its value",
    'a,b\n1,""bare""\n': r"row 1 has a quote that does not end its value",
    'a,b\n1,5" pipe\n3,4,5\n': r"row 2 has 3 columns, the first line 2: '3,4,5'",
    f"a,b\n1,{'long ' * 40000}\n3,4,5\n": r"row 2 has 3 columns, the first line 2: '3,4,5'",
}


@pytest.mark.parametrize(
    "text", _REFUSED, ids=["open", "middle", "inside", "inside at the end", "around", "wide", "wide after a long text"]
)
def test_a_row_that_cannot_be_divided_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=_REFUSED[text]):
        _read(tmp_path / "t.csv")


_ESCAPED = {
    "a,b,c\n" + r'1,"He said \"hi\" there",x' + "\n": [(1, r'He said "hi" there', "1", "x")],
    "a,b,c\n" + r'1,"\"hi\", he said",x' + "\n" + '2,"q, ""w""",\n': [
        (1, '"hi", he said', "1", "x"),
        (2, 'q, "w"', "2", ""),
    ],
    "a,b,c\n" + r'1,"two\nwords \"of' + "\n" + r'C:\new\",",x' + "\n": [
        (1, r'two\nwords "of' + "\n" + r'C:\new",', "1", "x")
    ],
    "a,b,c\n" + r'1,"\"C:\\",x' + "\n" + r'2,\\server\e,"\\\""' + "\n": [
        (1, '"C:\\', "1", "x"),
        (2, r"\\server\e", "2", r"\""),
    ],
}


@pytest.mark.parametrize("text", _ESCAPED, ids=["middle", "comma", "two lines", "backslashes"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_quotes_that_are_escaped_by_backslashes_are_quotes(text: str, name: str, tmp_path: Path) -> None:
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert _read(tmp_path / name) == _ESCAPED[text]
    (batch,) = Table(tmp_path / name, "items").batches(["b", "a"], ["c"])
    assert batch.rows() == _ESCAPED[text]


@pytest.mark.parametrize("last", ["C:\\", '5\\" pipe', '{"a": "b\\"c"}', 'q \\" w'])
def test_a_backslash_before_a_quote_that_ends_its_value_is_a_backslash(last: str, tmp_path: Path) -> None:
    rows = [["a", "b", "c"], ["1", "x, y", last], ["2", last, "z, w"]]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert _read(tmp_path / "t.csv") == [(row, b, a, c) for row, (a, b, c) in enumerate(rows[1:], start=1)]


def test_an_escaped_quote_is_found_wherever_the_file_is_divided_to_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "_CHUNK", 5)
    for blanks in range(6):
        (tmp_path / "t.csv").write_text("a,b,c\n1," + f'"{" " * blanks}x \\"y\\" z",w\n')
        assert _read(tmp_path / "t.csv") == [(1, 'x "y" z', "1", "w")]


def test_a_row_that_cannot_be_divided_is_named_beside_escaped_quotes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,"x \\"y\\" z"\n3,"open\n4,5\n')
    with pytest.raises(UserError, match="row 1 has a quote that does not end its value"):
        _read(tmp_path / "t.csv")
