"""JSON tables row by row, for files that polars' reader refuses.

These are files whose columns hold values of several types, and lines of Python literals.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from ptmrec_dist.data.tables.compression import open_bytes
from ptmrec_dist.data.tables.python_literals import loads
from ptmrec_dist.errors import UserError

_LARGEST_EXACT = 2**53


def json_columns(path: Path) -> list[str]:
    """Name the columns of a JSON table.

    Args:
        path: JSON lines or one JSON array; may be compressed.

    Returns:
        The keys of all objects, in order of appearance.

    Raises:
        ValueError: A row is not a JSON object, or not UTF-8.
    """
    return list(dict.fromkeys(name for row in _rows(path) for name in row))


def read_json_columns(path: Path, names: Sequence[str], lists: Collection[str]) -> pl.DataFrame:
    """Read some columns of a JSON table as text.

    Args:
        path: JSON lines or one JSON array; may be compressed.
        names: Columns to read.
        lists: Those of them that may hold lists and objects, which are written as JSON.

    Returns:
        The columns as text; null where a row has no value.

    Raises:
        UserError: A list or object in another column; says where.
        ValueError: A row is not a JSON object, or not UTF-8.
    """
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    for number, row in enumerate(_rows(path), start=1):
        for name, texts in columns.items():
            value = row.get(name)
            if isinstance(value, list | dict) and name not in lists:
                found = json.dumps(value, ensure_ascii=False)[:100]
                raise UserError(
                    f"{path}: column {name!r} holds {found} in row {number}; expected one text, number or time per row"
                )
            texts.append(_text(value))
    return pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open_bytes(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        filled = (line for line in lines if line.strip())
        first = next(filled, "")
        if first.lstrip().startswith("["):
            values = json.loads(first + "".join(lines))
        else:
            values = map(loads, chain([first] if first else [], filled))
        for value in values:
            if not isinstance(value, dict):
                raise ValueError(f"{str(value)[:100]!r} is not a JSON object")
            yield value


def _text(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
        value = int(value)
    return json.dumps(value, ensure_ascii=False)
