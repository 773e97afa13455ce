"""Tables from files: text, JSON lines or Parquet, every column as text, or a one-line error."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar

import polars as pl
from polars.exceptions import PolarsError

from ptmrec_dist.data.tables.compression import open_bytes
from ptmrec_dist.data.tables.formats import ENDINGS, format_of, scan
from ptmrec_dist.data.tables.json_rows import json_columns, read_json_columns
from ptmrec_dist.data.tables.malformed import explain
from ptmrec_dist.data.tables.parquet import MAGIC, panics_as_errors, parts_of
from ptmrec_dist.data.tables.text_rows import quoting, read_text_columns
from ptmrec_dist.data.tables.values import as_text
from ptmrec_dist.errors import UserError, first_line

T = TypeVar("T")
_OTHER_SEPARATORS = ("\t", ";", "::", "|", ",", " ")
_SHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_MOST_NAMES = 30
_SAMPLE = 5
"""Lines by which a separator is guessed."""
_BATCH = 2**19
"""Rows of a batch."""


class Table:
    """A table on disk whose header has been read.

    Args:
        path: File to read, or a folder of Parquet files.
        setting: Name of the setting that gave the path, for messages.
        separator: Column separator of a text file, where it does not follow from the file name.
        header: Whether the first row of a text file names the columns.
        columns: The settings `columns.…` of this table to the names that they give, for messages.
        flags: What the options `separator` and `header` of this table begin with, for messages.

    Raises:
        UserError: The file is missing, has an unknown ending, is empty, or cannot be read as the format that its name implies.
    """

    def __init__(
        self,
        path: Path,
        setting: str,
        separator: str | None = None,
        header: bool = True,
        *,
        columns: Mapping[str, object] = {},
        flags: str = "--",
    ) -> None:
        self.path = path
        self._setting, self._flags, self._named_by = setting, flags, columns
        if not parts_of(path):
            raise UserError(f"{setting}: got {path}, which is not a file; expected one that ends in {ENDINGS}")
        form = format_of(path, separator, header)
        if form is None:
            sheet = "save the sheet as .csv" if path.suffix.lower() in _SHEETS else ""
            remedy = sheet or f"for other text files give {self._flags}separator"
            raise UserError(f"{setting}: got {path}, expected a file that ends in {ENDINGS}; {remedy}")
        if path.stat().st_size == 0:
            raise UserError(f"{setting}: {path} is empty; expected a header and at least one row")
        self.format = form
        self._frame: pl.LazyFrame | None = None
        try:
            self._refuse_other_kind(form.kind)
            with panics_as_errors():
                self._frame = scan(path, form)
                self.columns = self._frame.collect_schema().names()
        except (PolarsError, OSError, EOFError) as error:
            if form.kind != "json":
                raise self._unreadable(error) from error
            self._frame, self.columns = None, self._by_rows(error, lambda: json_columns(path))
        if not self.columns:
            raise UserError(f"{setting}: {path} has no rows; expected at least one")
        self._refuse_one_column()
        if form.quoted:
            self._suit_quotes()

    def read(self, required: Iterable[str], optional: Iterable[str] = (), lists: Iterable[str] = ()) -> pl.DataFrame:
        """Read some columns.

        Args:
            required: Names of columns that must exist.
            optional: Names of columns that are read where they exist.
            lists: Names of columns that may hold lists, whose elements are joined by a space.

        Returns:
            The columns as text without surrounding blanks, missing values as empty text, and `row`, counted from 1.

        Raises:
            UserError: A required column is missing or of a type that is not text, there are no rows, or a row cannot be read.
        """
        lists = set(lists)
        table = self._texts(self._collect(self._names(required, optional), lists), lists)
        if table.is_empty():
            raise self._no_rows()
        return table.with_row_index("row", offset=1)

    def batches(self, required: Iterable[str], optional: Iterable[str] = ()) -> Iterator[pl.DataFrame]:
        """Read some columns of a table that may be larger than memory.

        Args:
            required: Names of columns that must exist.
            optional: Names of columns that are read where they exist.

        Yields:
            What `read` returns, some rows at a time.

        Raises:
            UserError: As `read`, if need be after some batches.
        """
        rows = 0
        for columns in self._streamed(self._names(required, optional)):
            yield self._texts(columns).with_row_index("row", offset=rows + 1)
            rows += columns.height
        if not rows:
            raise self._no_rows()

    def _names(self, required: Iterable[str], optional: Iterable[str]) -> list[str]:
        required = list(dict.fromkeys(required))
        missing = [name for name in required if name not in self.columns]
        if missing:
            raise self._without(missing)
        names = required + [name for name in optional if name in self.columns and name not in required]
        twice = [name for name in names if f"{name}_duplicated_0" in self.columns]
        if twice and self.format.kind == "text":
            raise UserError(
                f"{self._setting}: {self.path} has several columns {twice[0]!r}; expected one: rename the others"
            )
        return names

    def _texts(self, columns: pl.DataFrame, lists: Container[str] = ()) -> pl.DataFrame:
        decode = self.format.kind == "json"
        try:
            return pl.DataFrame([as_text(column, lists=column.name in lists, decode=decode) for column in columns])
        except ValueError as error:
            raise UserError(f"{self._setting}: {self.path}: {error}") from error

    def _collect(self, names: list[str], lists: set[str]) -> pl.DataFrame:
        if self._frame is None:
            return self._row_by_row(names, lists)
        try:
            with panics_as_errors():
                return self._frame.select(names).collect()
        except (PolarsError, OSError, EOFError) as error:
            return self._by_rows(error, lambda: self._row_by_row(names, lists))

    def _streamed(self, names: list[str]) -> Iterator[pl.DataFrame]:
        rows = 0
        if self._frame is not None:
            try:
                with panics_as_errors():
                    for batch in self._frame.select(names).collect_batches(chunk_size=_BATCH, maintain_order=True):
                        yield batch
                        rows += batch.height
                return
            except (PolarsError, OSError, EOFError) as error:
                left = self._by_rows(error, lambda: self._row_by_row(names, set()))
        else:
            left = self._row_by_row(names, set())
        yield from left.slice(rows).iter_slices(_BATCH)

    def _row_by_row(self, names: list[str], lists: set[str]) -> pl.DataFrame:
        if self.format.kind == "json":
            return read_json_columns(self.path, names, lists)
        try:
            columns = read_text_columns(self.path, self.format, [self.columns.index(name) for name in names])
        except (ValueError, OSError, EOFError) as error:
            raise self._unreadable(error) from error
        return columns.rename(dict(zip(columns.columns, names, strict=True)))

    def _by_rows(self, error: Exception, read: Callable[[], T]) -> T:
        """Read a file once more where polars refused it: JSON columns with values of several types, quotes inside of values."""
        if self.format.kind != "json" and not self.format.quoted:
            raise self._unreadable(error) from error
        try:
            return read()
        except (ValueError, RecursionError, OSError, EOFError):
            raise self._unreadable(error) from error

    def _suit_quotes(self) -> None:
        """Leave to polars only files whose quotes it does not mistake."""
        try:
            suited = quoting(self.path, self.format)
        except (OSError, EOFError) as error:
            raise self._unreadable(error) from error
        if suited is None and self.format.separator != "\t":  # in tab-separated files they may be characters as any
            raise self._unreadable(ValueError("a quote inside of a quoted value is not written twice"))
        if suited != self.format:
            self.format, self._frame = suited or self.format, None

    def _refuse_other_kind(self, kind: str) -> None:
        """Refuse Parquet in a file with the name of a text table, and the other way round."""
        if self.path.is_dir():
            return
        with self.path.open("rb") as file:
            is_parquet = file.read(len(MAGIC)) == MAGIC
        if is_parquet and kind != "parquet":
            raise UserError(f"{self._setting}: {self.path} is a Parquet file; rename it to end in .parquet")
        if kind == "parquet" and not is_parquet:
            raise UserError(
                f"{self._setting}: {self.path} is not a Parquet file; rename it by its format, such as .csv or .jsonl"
            )

    def _refuse_one_column(self) -> None:
        if self._frame is None or self.format.kind != "text" or len(self.columns) > 1:
            return
        line = self.columns[0] if self.format.header else str(self._frame.head(1).collect().item())
        with open_bytes(self.path) as file:
            lines = [line.decode(errors="replace") for line in islice(file, _SAMPLE)]
        guess = next((other for other in _OTHER_SEPARATORS if 0 < lines[0].count(other) <= _fewest(lines, other)), None)
        found = f"{self._setting}: {self.path}: one column found, {line[:200]!r}"
        if guess is not None:
            raise UserError(f"{found}; is it separated by {guess!r}? then add {self._flags}separator {guess!r}")
        raise UserError(
            f"{found}, without a {self.format.separator!r}; give another {self._flags}separator, or remove lines before the "
            "header"
        )

    def _no_rows(self) -> UserError:
        found = UserError(f"{self._setting}: {self.path} has a header but no rows; expected at least one row")
        return self._malformed() or found

    def _without(self, missing: list[str]) -> UserError:
        odd = any("\ufffd" in name or "\r" in name for name in self.columns)
        if odd and (error := self._malformed()) is not None:
            return error
        nearest = [match for name in missing for match in get_close_matches(name, self.columns, n=1)]
        has = ", ".join(map(repr, self.columns[:_MOST_NAMES]))
        has += f" and {len(self.columns) - _MOST_NAMES} more" if len(self.columns) > _MOST_NAMES else ""
        message = f"{self._setting}: {self.path} has no column {', '.join(map(repr, missing))}; it has {has}"
        if nearest:
            message += f"; the nearest is {', '.join(map(repr, dict.fromkeys(nearest)))}"
        if not self.format.header:
            return UserError(f"{message}; without a header columns are named by number: --columns.item 1")
        options = [f"--columns.{setting}" for setting, value in self._named_by.items() if _names_one(value, missing)]
        them = "them" if len(options) > 1 else "it"
        message += "; rename yours" + (f", or name {them} by {' and '.join(options)}" if options else "")
        if self.format.kind == "text" and any(map(_is_number, self.columns)):
            message += f"; if the first row is not a header, add {self._flags}header false and name columns by number"
        return UserError(message)

    def _unreadable(self, error: Exception) -> UserError:
        reason = first_line(error)
        found = UserError(f"{self._setting}: cannot read {self.path} ({reason}); expected a well-formed file in UTF-8")
        return self._malformed() or found

    def _malformed(self) -> UserError | None:
        try:
            found = explain(self.path, self.format)
        except (OSError, EOFError):
            return None  # not in the format of its ending: the first reason is more specific
        return UserError(f"{self._setting}: cannot read {self.path}: {found}") if found is not None else None


def _names_one(value: object, missing: list[str]) -> bool:
    """Whether a setting, which gives the name of one column or of several, gives a missing one."""
    return any(name in missing for name in (value if isinstance(value, tuple) else (value,)))


def _fewest(lines: list[str], separator: str) -> int:
    return min(line.count(separator) for line in lines)


def _is_number(name: str) -> bool:
    try:
        float(name.split("_duplicated_")[0])
    except ValueError:
        return False
    return True
