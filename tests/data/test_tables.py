"""Files that cannot be read end in one line that names the file and what is wrong with it."""

from pathlib import Path

import pytest

from ptmrec_dist.data.tables import Table
from ptmrec_dist.errors import UserError

_BAD_FILES = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"a,b\n", "has a header but no rows"),
    "columns.csv": (b"x,y\n1,2\n", "has no column 'a', 'b'; it has 'x', 'y'"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "cannot read"),
    "latin.csv": ("a,b\né,2\n".encode("latin-1"), "line 2 has byte 0xe9 at position 0, which is not UTF-8"),
    "broken.csv.gz": (b"\x1f\x8b\x08\x00nonsense", "cannot read"),
    "text.parquet": (b"a,b\n1,2\n", "cannot read"),
    "broken.jsonl": (b'{"a": 1, "b"\n', "cannot read"),
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


@pytest.mark.parametrize("name", ["nothing.csv", "."])
def test_what_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        Table(tmp_path / name, "items")


def test_values_come_as_text_without_blanks_and_nothing_is_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffa,b,c\n 007 ,"two\nlines",1\n,x,\n')
    table = Table(tmp_path / "t.csv", "items").read(required=["a", "b"], optional=["c", "d"])
    assert table.rows() == [(1, "007", "two\nlines", "1"), (2, "", "x", "")]
