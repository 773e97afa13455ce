"""Parquet tables from files that are not trusted: polars panics on some damaged ones, and a panic is no `Exception`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import polars as pl
from polars.exceptions import ComputeError, PanicException

from ptmrec_dist.errors import on_one_line

# Polars panics on zones that are offsets (`+05:30`), which pandas writes; nothing here reads a zone.
os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")


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
        path: File, or a folder with files that have the rows, as Spark and Dask write it.

    Returns:
        The file, or those that end in `.parquet` in the folder, in alphabetical order.
    """
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


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
