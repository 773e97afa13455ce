"""Tables from files: CSV, Parquet, JSON lines or `.inter`, every column as text, or one line that says why not."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from ptmrec_dist.errors import UserError


def _scan_csv(path: Path) -> pl.LazyFrame:
    return pl.scan_csv(path, infer_schema=False, glob=False)


def _scan_inter(path: Path) -> pl.LazyFrame:
    table = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False, glob=False)
    # RecBole writes types into the header (`user_id:token`).
    return table.rename({name: name.split(":")[0] for name in table.collect_schema().names()})


_SCANNERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".csv": _scan_csv,
    ".csv.gz": _scan_csv,
    ".parquet": lambda path: pl.scan_parquet(path, glob=False),
    ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
    ".inter": _scan_inter,
}


class Table:
    """A table on disk whose header has been read.

    Args:
        path: File to read.
        setting: Name of the setting that gave the path, for messages.
        suffixes: File name endings accepted.

    Raises:
        UserError: No such file, another ending, an empty file, or one that cannot be read as what its name says.
    """

    def __init__(self, path: Path, setting: str, suffixes: Sequence[str]) -> None:
        self._path = path
        self._setting = setting
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
        if not path.is_file():
            raise UserError(
                f"{setting}: got {path}, which is not a file; expected one that ends in {', '.join(suffixes)}"
            )
        if suffix is None:
            raise UserError(f"{setting}: got {path}, expected a file that ends in {', '.join(suffixes)}")
        if path.stat().st_size == 0:
            raise UserError(f"{setting}: {path} is empty; expected a header and at least one row")
        try:
            self._frame = _SCANNERS[suffix](path)
            self.columns = self._frame.collect_schema().names()
        except (PolarsError, OSError) as error:
            raise self._unreadable(error) from error

    def read(self, required: Iterable[str], optional: Iterable[str] = ()) -> pl.DataFrame:
        """Read some columns.

        Args:
            required: Names of columns that must be there.
            optional: Names of columns that are read where they are there.

        Returns:
            The columns as text without surrounding blanks, missing values as empty text, and `row`, counted from 1.

        Raises:
            UserError: A required column is missing, there are no rows, or a row cannot be read.
        """
        required = list(dict.fromkeys(required))
        missing = [name for name in required if name not in self.columns]
        if missing:
            raise UserError(
                f"{self._setting}: {self._path} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, self.columns))}; rename yours, or name it with --columns.…"
            )
        names = required + [name for name in optional if name in self.columns and name not in required]
        try:
            texts = self._frame.select(pl.col(names).cast(pl.String).str.strip_chars().fill_null(""))
            table = texts.collect().with_row_index("row", offset=1)
        except (PolarsError, OSError) as error:
            raise self._unreadable(error) from error
        if table.is_empty():
            raise UserError(f"{self._setting}: {self._path} has a header but no rows; expected at least one row")
        return table

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[0]
        return UserError(f"{self._setting}: cannot read {self._path} ({reason}); expected a well-formed file in UTF-8")
