"""Text tables row by row, for files with quotes inside values (`5" pipe`) or behind backslashes, which polars mistakes."""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

import polars as pl

from ptmrec_dist.data.compression import open_bytes
from ptmrec_dist.data.formats import Format

_ESCAPE = re.compile(r'(\\+)("?)')
_CHUNK = 2**20
"""Bytes that are searched at once."""


def read_text_columns(path: Path, form: Format, positions: Sequence[int]) -> pl.DataFrame:
    """Read some columns of a text table as text.

    A value is quoted if it begins with a quote; inside of others quotes are characters as any. So are all quotes of a
    tab-separated file in which quoted values do not end as they should: such files are often written without quoting.

    Args:
        path: Text; may be compressed.
        form: Its format, with a separator of one character.
        positions: Positions of the columns to read.

    Returns:
        The columns as text, named by position; null where a row has no value.

    Raises:
        ValueError: A quote that is not closed, a row with more columns than the first, or not UTF-8.
    """
    try:
        return _columns(path, form, positions)
    except csv.Error as error:
        if form.separator != "\t":
            raise ValueError(str(error)) from error
        return _columns(path, replace(form, quoted=False), positions)


def escapes_quotes(path: Path, form: Format) -> bool:
    """Tell whether quotes inside of quoted values have a backslash before them, as Spark and MySQL write them.

    A quoted value may also end in a backslash. So a file is taken to have escaped quotes only if it cannot be divided into
    rows without them, and can be with them.

    Args:
        path: Text; may be compressed.
        form: Its format, with values that may be quoted.

    Returns:
        Whether they are.

    Raises:
        OSError: The file cannot be read or uncompressed.
        EOFError: It is cut off.
    """
    with open_bytes(path) as file:
        if not _holds(file, b'\\"'):
            return False
    return not _divides(path, form) and _divides(path, replace(form, escaped=True))


def records(lines: Iterable[str], form: Format) -> Iterator[list[str]]:
    """Divide lines into the values of each row.

    Args:
        lines: Lines with their ends.
        form: The format, with a separator of one character.

    Returns:
        The values of each row, none for a blank line.

    Raises:
        csv.Error: While they are read: a quote that is not closed, or something between it and the next separator.
    """
    csv.field_size_limit(sys.maxsize)
    if not form.quoted:
        return csv.reader(lines, delimiter=form.separator, quoting=csv.QUOTE_NONE)
    if not form.escaped:
        return csv.reader(lines, delimiter=form.separator, strict=True)
    # The reader would drop every other backslash, too: those that do not come before a quote are written twice.
    lines = (_ESCAPE.sub(lambda found: found[0] if found[2] else 2 * found[1], line) for line in lines)
    return csv.reader(lines, delimiter=form.separator, strict=True, escapechar="\\")


def _columns(path: Path, form: Format, positions: Sequence[int]) -> pl.DataFrame:
    columns: list[list[str | None]] = [[] for _ in positions]
    for row in _rows(path, form):
        for column, position in zip(columns, positions, strict=True):
            column.append(row[position] if position < len(row) else None)
    return pl.DataFrame(columns, schema=dict.fromkeys(map(str, positions), pl.String), orient="col")


def _rows(path: Path, form: Format) -> Iterator[list[str]]:
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        rows = records(lines, form)
        first = next(filter(None, rows))
        for row in rows if form.header else chain([first], rows):
            if len(row) > len(first):
                raise ValueError("a row with more columns than the first")
            yield row


def _divides(path: Path, form: Format) -> bool:
    try:
        for _ in _rows(path, form):
            pass
    except (csv.Error, ValueError):
        return False
    return True


def _holds(file: IO[bytes], wanted: bytes) -> bool:
    end = b""
    while chunk := file.read(_CHUNK):
        if wanted in end + chunk:
            return True
        end = chunk[1 - len(wanted) :]
    return False
