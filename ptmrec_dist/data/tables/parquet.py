"""Parquet tables from files that are not trusted: polars panics on some damaged ones, and a panic is no `Exception`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import polars as pl
from polars.exceptions import ComputeError, PanicException

from ptmrec_dist.errors import on_one_line

# Polars panics on zones that are offsets (`+05:30`), which pandas writes; nothing here reads a zone.
os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")

MAGIC = b"PAR1"
"""What a Parquet file begins with."""
_NULL = "__HIVE_DEFAULT_PARTITION__"
"""Stands for a missing value in the name of a folder."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of polars, which would end the process with a traceback, into one of its errors.

    Yields:
        Nothing.

    Raises:
        ComputeError: The block panicked.
    """
    try:
        yield
    except PanicException as error:
        raise ComputeError(f"the file is damaged: {on_one_line(error)[:200]}") from error


def parts_of(path: Path) -> list[Path]:
    """List the files of a table.

    Args:
        path: File, or a folder with files that have the rows, as Spark and Dask write it; there may be folders in it that name
            a value of a column (`day=2017-07-14`).

    Returns:
        The file, or those that end in `.parquet` in the folder, in alphabetical order.
    """
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*.parquet"))
    return [part for part in found if all("=" in name for name in part.parent.relative_to(path).parts)]


def scan_parquet(path: Path) -> pl.LazyFrame:
    """Open a table.

    Args:
        path: What `parts_of` takes.

    Returns:
        The columns of the files, and as text those that their folders name.

    Raises:
        PolarsError: It is no Parquet, or is damaged.
        OSError: A file cannot be read.
    """
    tables = []
    for folder, parts in groupby(parts_of(path), key=lambda part: part.parent):
        named = {} if path.is_file() else _values_in(folder.relative_to(path))
        tables.append(pl.scan_parquet(list(parts), glob=False).with_columns(**named))
    return pl.concat(tables) if len(tables) > 1 else tables[0]


def _values_in(folder: Path) -> dict[str, pl.Expr]:
    """The columns that the names of a partition's folders give; characters that file systems refuse are quoted in them."""
    values = {unquote(name): unquote(value) for name, _, value in (part.partition("=") for part in folder.parts)}
    return {name: pl.lit(None if value == _NULL else value, pl.String) for name, value in values.items()}


@panics_as_errors()
def read_parquet(source: Path | IO[bytes], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a table.

    Args:
        source: File, or its bytes.
        columns: Names of the columns; by default all.

    Returns:
        The columns.

    Raises:
        PolarsError: It is no Parquet, is damaged, or lacks a column.
        OSError: The file cannot be read.
    """
    return pl.read_parquet(source, columns=None if columns is None else list(columns))


@panics_as_errors()
def parquet_columns(path: Path) -> list[str]:
    """Read the names of a table's columns.

    Args:
        path: File.

    Returns:
        The names, in order.

    Raises:
        PolarsError: It is no Parquet, or is damaged.
        OSError: The file cannot be read.
    """
    return list(pl.read_parquet_schema(path))
