"""Compressed tables, and tables in UTF-16, are read as the plain ones are."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ptmrec_dist.data.importers.rows import TextFormat, read_rows
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.errors import UserError

_ROWS = [{"a": "é1", "b": "x, y"}, {"a": "2", "b": "z"}]


def _zip(content: bytes, *others: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table", content)
        for name in others:
            archive.writestr(name, content)
    return buffer.getvalue()


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    ".zip": lambda content: _zip(content, "__MACOSX/._table"),
}
_WRITTEN = {
    "t.csv": 'a,b\né1,"x, y"\n2,z\n',
    "t.tsv": "a\tb\né1\tx, y\n2\tz\n",
    "t.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS),
    "t.json": json.dumps(_ROWS, ensure_ascii=False),
    "t.dat": "a::b\né1::x, y\n2::z\n",
}


def _read(path: Path) -> list[tuple[str, str]]:
    separator = "::" if path.name.startswith("t.dat") else None
    return Table(path, "items", separator).read(["a", "b"]).select("a", "b").rows()


@pytest.mark.parametrize("name", _WRITTEN)
@pytest.mark.parametrize("ending", _COMPRESS)
def test_a_compressed_table_is_read_as_the_plain_one(name: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / (name + ending)).write_bytes(_COMPRESS[ending](_WRITTEN[name].encode()))
    assert _read(tmp_path / (name + ending)) == [tuple(row.values()) for row in _ROWS]


@pytest.mark.parametrize("ending", _COMPRESS)
def test_the_content_rather_than_the_name_says_how_a_table_is_compressed(ending: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(_COMPRESS[ending](_WRITTEN["t.csv"].encode()))
    (tmp_path / f"t.csv{ending}").write_text(_WRITTEN["t.csv"])
    assert _read(tmp_path / "t.csv") == _read(tmp_path / f"t.csv{ending}") == [tuple(row.values()) for row in _ROWS]


@pytest.mark.parametrize("name", _WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("compressed", [False, True])
def test_utf_16_is_read_where_it_begins_with_its_mark(
    name: str, encoding: str, compressed: bool, tmp_path: Path
) -> None:
    content = ("\ufeff" + _WRITTEN[name]).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    assert _read(tmp_path / name) == [tuple(row.values()) for row in _ROWS]


@pytest.mark.parametrize("ending", _COMPRESS)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.dat"])
def test_a_compressed_table_that_is_cut_off_is_refused_in_one_line(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / (name + ending)
    content = _COMPRESS[ending]("".join(_WRITTEN[name].replace("z", str(row)) for row in range(5000)).encode())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"items: cannot read .*{path.name} \(.+\)") as error:
        _read(path)
    assert "\n" not in str(error.value)


def test_a_zip_archive_of_several_files_is_refused_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv.zip").write_bytes(_zip(b"a,b\n1,2\n", "other.csv"))
    with pytest.raises(UserError, match=r"t\.csv\.zip \(a zip archive of 2 files, expected one; unpack it\)"):
        _read(tmp_path / "t.csv.zip")


def test_what_begins_as_utf_16_but_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfea,b\n1,2")
    with pytest.raises(UserError, match=r"t\.csv \(begins as UTF-16 does, but is none"):
        _read(tmp_path / "t.csv")


@pytest.mark.parametrize("ending", _COMPRESS)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_importers_read_compressed_files(name: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / (name + ending)).write_bytes(_COMPRESS[ending](_WRITTEN[name].encode()))
    assert list(read_rows(tmp_path / (name + ending), TextFormat())) == _ROWS
