"""Text tables row by row, for files with quotes inside of values (`5" pipe`), which polars' reader refuses."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import polars as pl

from ptmrec_dist.data.compression import open_bytes
from ptmrec_dist.data.formats import Format


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
        return _columns(path, form, positions, quoted=form.quoted)
    except csv.Error as error:
        if form.separator != "\t":
            raise ValueError(str(error)) from error
        return _columns(path, form, positions, quoted=False)


def records(lines: Iterable[str], separator: str, quoted: bool) -> Iterator[list[str]]:
    """Divide lines into the values of each row.

    Args:
        lines: Lines with their ends.
        separator: Between columns, one character.
        quoted: Whether values may be quoted.

    Returns:
        The values of each row, none for a blank line.

    Raises:
        csv.Error: While they are read: a quote that is not closed, or something between it and the next separator.
    """
    csv.field_size_limit(sys.maxsize)
    if quoted:
        return csv.reader(lines, delimiter=separator, strict=True)
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)


def _columns(path: Path, form: Format, positions: Sequence[int], quoted: bool) -> pl.DataFrame:
    columns: list[list[str | None]] = [[] for _ in positions]
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        rows = records(lines, form.separator, quoted)
        first = next(filter(None, rows))
        for row in rows if form.header else chain([first], rows):
            if len(row) > len(first):
                raise ValueError("a row with more columns than the first")
            for column, position in zip(columns, positions, strict=True):
                column.append(row[position] if position < len(row) else None)
    return pl.DataFrame(columns, schema=dict.fromkeys(map(str, positions), pl.String), orient="col")
