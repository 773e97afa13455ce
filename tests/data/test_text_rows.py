"""Text tables with quotes that polars refuses are read as Python's `csv` reads them."""

import csv
import io
from pathlib import Path

import pytest

from ptmrec_dist.data import tables
from ptmrec_dist.data.tables import Table
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


def test_rows_with_quotes_inside_follow_those_that_were_read_before_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH", 8)
    values = [f"v{row}" for row in range(60)] + ['5" pipe', "last"]
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{row},{value}\n" for row, value in enumerate(values)))
    batches = list(Table(tmp_path / "t.csv", "items").batches(["a", "b"]))
    assert [row for batch in batches for row in batch.rows()] == [
        (row + 1, str(row), value) for row, value in enumerate(values)
    ]


_REFUSED = {
    'a,b\n1,2\n3,"open\n4,5\n': r"row 2 has a quote that does not end its value \(unexpected end of data\)",
    'a,b\n1,2\n3,"x" y\n4,5\n': r"row 2 has a quote that does not end its value .*; write quotes inside of quoted values twice",
    'a,b\n1,5" pipe\n3,4,5\n': r"row 2 has 3 columns, the first line 2: '3,4,5'",
    f"a,b\n1,{'long ' * 40000}\n3,4,5\n": r"row 2 has 3 columns, the first line 2: '3,4,5'",
}


@pytest.mark.parametrize("text", _REFUSED, ids=["open", "middle", "wide", "wide after a long text"])
def test_a_row_that_cannot_be_divided_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=_REFUSED[text]):
        _read(tmp_path / "t.csv")
