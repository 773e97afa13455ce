"""File formats of tables: the format that a file's name implies, and a lazy polars frame of its content.

Text files are those of `.csv`, `.tsv`, RecBole's atomic files (`.inter`, `.item`, `.user`: tab-separated, unquoted), and of
any other name once a separator is given. JSON lines may also be one JSON array. Text and JSON may be compressed, and in UTF-16.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ptmrec_dist.data.tables.compression import COMPRESSED, for_polars, open_bytes, without_compression
from ptmrec_dist.data.tables.parquet import scan_parquet

_ATOMIC = (".inter", ".item", ".user")
_SEPARATORS = {".csv": ",", ".tsv": "\t", **dict.fromkeys(_ATOMIC, "\t")}
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = ".parquet"
_TYPED = r"^([^:,;\t]+):(?:token|float)(?:_seq)?$"
_ESCAPES = {r"\t": "\t", "tab": "\t"}
_BOM = b"\xef\xbb\xbf"

ENDINGS = f"{', '.join([*_SEPARATORS, *_JSON])} (each also with {', '.join(COMPRESSED[:-1])} or {COMPRESSED[-1]}) or {_PARQUET}"
"""File name endings that are read, in words."""


@dataclass(frozen=True)
class Format:
    """How to read a file."""

    kind: str
    """`text`, `json` or `parquet`."""
    separator: str = ""
    """Column separator of a text file, of any length."""
    quoted: bool = False
    """Whether values of a text file may be quoted."""
    header: bool = True
    """Whether the first row of a text file names the columns; else they are named 1, 2, 3 and so on."""
    escaped: bool = False
    """Whether quotes inside of quoted values have a backslash before them, rather than being written twice."""


def format_of(path: Path, separator: str | None, header: bool) -> Format | None:
    """Infer a file's format from its name.

    Args:
        path: The file, or a folder of Parquet files.
        separator: Column separator of a text file, where it does not follow from the file name.
        header: Whether the first row of a text file names the columns.

    Returns:
        The format; None where neither the name nor a separator determines it.
    """
    name = path.name.lower()
    suffix = Path(without_compression(name)).suffix
    if suffix in _JSON:
        return Format("json")
    if name.endswith(_PARQUET) or path.is_dir():
        return Format("parquet")
    between = _ESCAPES.get(separator, separator) if separator else _SEPARATORS.get(suffix)
    if between is None:
        return None
    return Format("text", between, quoted=suffix not in _ATOMIC and len(between.encode()) == 1, header=header)


def scan(path: Path, form: Format) -> pl.LazyFrame:
    """Open a table.

    Args:
        path: The file.
        form: Its format.

    Returns:
        Its columns: as text from text files, else with the types of the file.

    Raises:
        PolarsError: The file is found to be malformed on opening.
    """
    if form.kind == "parquet":
        return scan_parquet(path)
    if form.kind == "json":
        return _scan_json(path)
    return _scan_text(path, form) if len(form.separator.encode()) == 1 else _split_lines(path, form)


def _scan_text(path: Path, form: Format) -> pl.LazyFrame:
    table = pl.scan_csv(
        for_polars(path),
        separator=form.separator,
        quote_char='"' if form.quoted else None,
        has_header=form.header,
        infer_schema=False,
        glob=False,
    )
    return _named(table, form)


def _split_lines(path: Path, form: Format) -> pl.LazyFrame:
    """Read columns that are separated by several bytes, which polars' own reader does not support."""
    line = pl.col("line").str.strip_prefix("\ufeff").str.strip_chars_end("\r")
    lines = pl.scan_lines(for_polars(path), glob=False).select(line).filter(pl.col("line") != "")
    separators = pl.col("line").str.count_matches(form.separator, literal=True)
    found = lines.select(first=pl.col("line").first(), most=separators.max()).collect(engine="streaming")
    if found["first"][0] is None:
        raise pl.exceptions.NoDataError("no lines")
    first = found["first"][0].split(form.separator)
    if found["most"][0] >= len(first):
        raise pl.exceptions.ComputeError("a line with more columns than the first")
    table = lines.select(pl.col("line").str.split_exact(form.separator, len(first) - 1)).unnest("line")
    if form.header:
        table = table.slice(1).rename(dict(zip(table.collect_schema().names(), first, strict=True)))
    return _named(table, form)


def _named(table: pl.LazyFrame, form: Format) -> pl.LazyFrame:
    names = pl.Series(table.collect_schema().names(), dtype=pl.String)
    if not form.header:
        return table.rename({name: str(number) for number, name in enumerate(names, start=1)})
    # RecBole writes types into the header (`user_id:token`).
    return table.rename(dict(zip(names, names.str.strip_chars().str.replace(_TYPED, "$1"), strict=True)))


def _scan_json(path: Path) -> pl.LazyFrame:
    with open_bytes(path) as file:
        start = file.read(4096)
        if not start.startswith(_BOM) and not start.lstrip().startswith(b"["):
            return pl.scan_ndjson(for_polars(path), infer_schema_length=None)
        content = (start + file.read()).removeprefix(_BOM)
    if content.lstrip().startswith(b"["):
        return pl.read_json(content, infer_schema_length=None).lazy()
    return pl.scan_ndjson(io.BytesIO(content), infer_schema_length=None)
