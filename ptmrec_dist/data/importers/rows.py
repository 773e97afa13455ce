"""Rows of files of any size, one at a time: memory does not grow with the file.

JSON lines (also the Python literals of Amazon's data of 2014), text with a separator of any length, Parquet, and the Arrow
files of Hugging Face `datasets`. All but the last two may be compressed. Bytes of text files that are no UTF-8 are read as
windows-1252, which older data sets are in.
"""

import codecs
import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ptmrec_dist.data.tables.compression import open_bytes, without_compression
from ptmrec_dist.data.tables.python_literals import loads

Row = dict[str, Any]
"""Column to value."""

_OR_WINDOWS = "ptmrec-windows-1252"
_LONGEST_LINE = 1_000_000
_BATCH = 4096


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("windows-1252", errors="replace"), error.end


codecs.register_error(_OR_WINDOWS, _as_windows_1252)


@dataclass(frozen=True)
class Unreadable:
    """A row that cannot be read."""

    reason: str
    """Why, a few words."""
    example: str
    """Where it is, and how it begins."""


@dataclass(frozen=True)
class TextFormat:
    """How the lines of a text file are divided."""

    separator: str = ","
    """What is between two columns; several characters are not quoted."""
    names: tuple[str, ...] = ()
    """Names of the columns of a file without a header."""


def read_rows(path: Path, text: TextFormat) -> Iterator[Row | Unreadable]:
    """Read a file row by row.

    Args:
        path: The file; its name decides the format.
        text: How the lines are divided, if it is neither JSON, Parquet nor Arrow.

    Yields:
        Each row, or why it cannot be read.

    Raises:
        OSError: The file cannot be read.
        EOFError: A compressed file is cut off.
        csv.Error: A quote that is never closed, or a field of a million characters.
        pa.ArrowInvalid: A Parquet or Arrow file is damaged.
    """
    name = without_compression(path.name)
    if name.endswith(".parquet"):
        for batch in pq.ParquetFile(path).iter_batches(_BATCH):
            yield from batch.to_pylist()
    elif name.endswith(".arrow"):
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                yield from batch.to_pylist()
    else:
        with open_bytes(path) as file:
            lines = _json_rows(file) if name.endswith((".json", ".jsonl", ".ndjson")) else _text_rows(file, text)
            yield from lines


def _json_rows(file: IO[bytes]) -> Iterator[Row | Unreadable]:
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
        if not line.strip():
            continue
        try:
            row = _object(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            yield Unreadable("not a JSON object", f"line {number}: {line[:60]!r}")
        else:
            yield row


def _object(line: str) -> Row:
    row = loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return row


def _text_rows(file: IO[bytes], text: TextFormat) -> Iterator[Row | Unreadable]:
    decoded = io.TextIOWrapper(file, encoding="utf-8-sig", errors=_OR_WINDOWS, newline="")
    records = _divided(decoded, text.separator)
    names: Sequence[str] = text.names or next(records, [])
    for number in itertools.count(1 if text.names else 2):
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # no end was found: what belongs to the row is unknown
                raise
            yield Unreadable("a quote inside of a quoted value is not written twice", f"row {number}: {error}")
            continue
        if len(values) == len(names):
            yield dict(zip(names, values, strict=True))
        elif values:
            found = text.separator.join(values)[:60]
            yield Unreadable(f"expected {len(names)} columns", f"row {number} has {len(values)}: {found!r}")


def _divided(file: io.TextIOWrapper, separator: str) -> Iterator[list[str]]:
    lines = iter(lambda: file.readline(_LONGEST_LINE), "")
    if len(separator) > 1:
        return (line.rstrip("\r\n").split(separator) for line in lines)
    csv.field_size_limit(_LONGEST_LINE)
    # Without `strict` the reader drops or adds quotes that it did not expect, and takes the rest of a file for one value.
    return csv.reader(
        lines, delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL, strict=True
    )
