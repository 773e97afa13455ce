"""Text tables row by row, for files with quotes inside values (`5" pipe`) or behind backslashes, which polars mistakes."""

import csv
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from ptmrec_dist.data.tables.compression import open_bytes
from ptmrec_dist.data.tables.formats import Format

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


def quoting(path: Path, form: Format) -> Format | None:
    """Find how a file writes quotes inside of quoted values: twice, or after a backslash, as Spark and MySQL write them.

    A quoted value may also end in a backslash. So a file is taken to have escaped quotes only if it cannot be divided into
    rows without them, and can be with them. polars leaves out, without a word, quotes that are written in neither way, as in
    `"the "best" one"`.

    Args:
        path: Text; may be compressed.
        form: Its format, with values that may be quoted.

    Returns:
        The format, `escaped` or as it was; None if the file can be divided into rows in neither way.

    Raises:
        OSError: The file cannot be read or uncompressed.
        EOFError: It is cut off.
    """
    with open_bytes(path) as file:
        if _is_plain(file, form.separator):
            return form
    return next((way for way in (form, replace(form, escaped=True)) if _divides(path, way)), None)


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


def _is_plain(file: IO[bytes], separator: str) -> bool:
    """Whether quotes stand in pairs around values or side by side, none after a backslash: nothing that could be mistaken."""
    edges = np.zeros(256, dtype=bool)
    edges[list(b'\r\n"' + separator.encode())] = True
    inside, before = 0, b"\n"
    for chunk in chain(_chunks(file), [b"\n"]):
        if b'\\"' in before + chunk:
            return False
        part = np.frombuffer(before + chunk, dtype=np.uint8)
        quotes = np.flatnonzero(part[1:-1] == ord('"')) + 1
        opens = (np.arange(len(quotes)) + inside) % 2 == 0
        if not edges[part[np.where(opens, quotes - 1, quotes + 1)]].all():
            return False
        inside, before = (inside + len(quotes)) % 2, part[-2:].tobytes()
    return not inside


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    yield file.read(_CHUNK).removeprefix(BOM_UTF8)
    while chunk := file.read(_CHUNK):
        yield chunk
