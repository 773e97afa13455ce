"""Scratch space for tables and arrays that may be larger than memory: files without a name, mapped into memory.

The system may drop pages of such a file from memory at any time, and removes the file as soon as nothing uses it any more,
also where the process is killed.

Shape suffixes: R rows of a block.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import DTypeLike


class Scratch:
    """Makes arrays and tables.

    Args:
        folder: Where their files are; without one they are in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def empty(self, length: int, dtype: DTypeLike) -> np.ndarray:
        """Make an array.

        Args:
            length: Its length.
            dtype: Its type.

        Returns:
            Array [length] of any content, which may be written.

        Raises:
            OSError: The disk is full.
        """
        if self._folder is None or not length:
            return np.empty(length, dtype)
        with TemporaryFile(dir=self._folder) as file:
            _reserve(file, length * np.dtype(dtype).itemsize)
            return np.asarray(np.memmap(file, dtype, "r+", shape=(length,)))

    def table(self, blocks: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Store the rows of a table.

        Args:
            blocks: Rows, some at a time, one block or more; columns are numbers, truth values or categories.

        Returns:
            All rows, each column in one chunk where there is a folder.

        Raises:
            OSError: The disk is full.
        """
        if self._folder is None:
            return pl.concat(list(blocks))
        with ExitStack() as files:

            def new_file() -> IO[bytes]:
                return files.enter_context(TemporaryFile(dir=self._folder))

            columns: list[_Column] = []
            for block in blocks:
                columns = columns or [_Column(column, new_file(), new_file()) for column in block]
                for column, values in zip(columns, block, strict=True):
                    column.append(values)
            return pl.DataFrame([column.mapped() for column in columns])


IN_MEMORY = Scratch()


class _Column:
    """A column that is written block by block, in the layout of Arrow: values, and a bit for each, 0 where it is null."""

    def __init__(self, like: pl.Series, values: IO[bytes], valid: IO[bytes]) -> None:
        self._like = like.clear()  # while a column with the categories exists, polars does not renumber them
        self._values = _Bits(values) if like.dtype == pl.Boolean else _Numbers(values)
        self._valid = _Bits(valid)
        self._rows = self._nulls = 0

    def append(self, column: pl.Series) -> None:
        physical = column.to_physical()
        self._rows += len(physical)
        self._nulls += physical.null_count()
        self._valid.append(physical.is_not_null().to_numpy())
        self._values.append(physical.fill_null(pl.lit(0).cast(physical.dtype)).to_numpy())

    def mapped(self) -> pl.Series:
        if not self._rows:
            return self._like
        valid = self._valid.mapped() if self._nulls else None
        kind = self._like.to_physical().to_arrow().type
        array = pa.Array.from_buffers(kind, self._rows, [valid, self._values.mapped()], self._nulls)
        column = pl.Series(self._like.name, array)
        return column.cat.to(self._like.dtype) if self._like.dtype in (pl.Categorical, pl.Enum) else column


class _Numbers:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def append(self, values_R: np.ndarray) -> None:
        self._file.write(values_R.data)

    def mapped(self) -> pa.Buffer:
        self._file.flush()
        return pa.py_buffer(np.memmap(self._file, np.uint8, "r"))


class _Bits(_Numbers):
    """Truth values, eight to a byte."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._left = np.empty(0, dtype=bool)

    def append(self, values_R: np.ndarray) -> None:
        values_R = np.concatenate([self._left, values_R])
        whole = len(values_R) // 8 * 8
        super().append(np.packbits(values_R[:whole], bitorder="little"))
        self._left = values_R[whole:]

    def mapped(self) -> pa.Buffer:
        super().append(np.packbits(self._left, bitorder="little"))
        return super().mapped()


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space on the disk now: a write to a mapped file for which there is none would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, 2**20):
        file.write(bytes(min(2**20, size - start)))
    file.flush()
