"""Conversion of table values of every type to text."""

import json

import polars as pl
from polars.exceptions import PolarsError

from ptmrec_dist.errors import first_line

_JSON = r"^\s*[\[{]"
_LARGEST_EXACT = 2**53
"""Above this, floats no longer represent every integer."""


def as_text(column: pl.Series, *, lists: bool = False, decode: bool = False) -> pl.Series:
    """Write a column as text.

    Whole floats are written as integers where floats are exact, times with a zone in UTC, lists are joined by a space, and what
    is missing (null, NaN) is empty.

    Args:
        column: Of any type.
        lists: Whether it may hold lists.
        decode: Whether lists may be written as JSON, as polars reads columns of lists and texts from a JSON file.

    Returns:
        Text without surrounding blanks, no nulls.

    Raises:
        ValueError: A column or value is not text, number or time, nor a list of those where lists are allowed.
    """
    dtype = column.dtype
    if dtype.is_nested() and not lists:
        raise ValueError(
            f"column {column.name!r} has type {str(dtype)[:100]}; expected one text, number or time per row"
        )
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        column = column.to_physical().cast(pl.Datetime(dtype.time_unit, "UTC"))
    if dtype.is_float():
        text = _floats(column)
    elif dtype.is_nested() or (lists and decode and dtype == pl.String and column.str.contains(_JSON).any()):
        text = _joined(column, decode)
    else:
        try:
            text = column.cast(pl.String)
        except PolarsError as error:
            reason = first_line(error)
            raise ValueError(f"column {column.name!r} of type {dtype} is not text ({reason}); convert it") from error
    if dtype.is_decimal():
        text = text.str.replace(r"\.0+$", "")
    return text.str.strip_chars().fill_null("")


def _floats(column: pl.Series) -> pl.Series:
    value = pl.col(column.name)
    whole = (value == value.round()) & (value.abs() < _LARGEST_EXACT)
    number = pl.when(whole).then(value).cast(pl.Int64).cast(pl.String)
    text = pl.when(value.is_not_nan()).then(pl.coalesce(number, value.cast(pl.String)))
    return column.to_frame().select(text).to_series()


def _joined(column: pl.Series, decode: bool) -> pl.Series:
    texts = []
    for row, value in enumerate(column.to_list(), start=1):
        try:
            texts.append(" ".join(_flattened(value, decode)))
        except TypeError as error:
            raise ValueError(
                f"column {column.name!r} (type {str(column.dtype)[:100]}) holds an object in row {row}: "
                f"{str(error)[:200]}; expected text, numbers or lists of them; choose another column, or extract the "
                "needed values from the object"
            ) from error
    return pl.Series(column.name, texts, dtype=pl.String)


def _flattened(value: object, decode: bool) -> list[str]:
    """The texts in a value, with nested lists flattened."""
    if decode and isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, dict) and value:
        raise TypeError(json.dumps(value, default=str, ensure_ascii=False))
    if isinstance(value, list):
        return [text for element in value for text in _flattened(element, decode)]
    return [str(value)] if value not in (None, "", {}) else []


def _decoded(text: str) -> object:
    try:
        return json.loads(text) if text.lstrip()[:1] in ("[", "{") else text
    except (ValueError, RecursionError):
        return text
