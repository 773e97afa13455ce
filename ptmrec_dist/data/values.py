"""Values of every type that a table may hold, as text."""

import json

import polars as pl

_LARGEST_EXACT = 2**53
"""From here on a float no longer holds every whole number."""


def as_text(column: pl.Series, *, json_lists: bool = False) -> pl.Series:
    """Write a column as text.

    Whole floats are written as integers where floats are exact, lists are joined by a space, and what is missing (null, NaN)
    is empty.

    Args:
        column: Of any type.
        json_lists: Whether texts may hold lists written as JSON, as polars reads columns of lists and texts.

    Returns:
        Text without surrounding blanks, no nulls.

    Raises:
        ValueError: A value that is no text, number, time or list of those; says which and in which row.
        PolarsError: A type that has no text.
    """
    if column.dtype.is_float():
        text = _floats(column)
    elif column.dtype.is_nested():
        text = _joined(column, column.to_list())
    elif json_lists and column.dtype == pl.String and column.str.contains(r"^\s*[\[{]").any():
        text = _joined(column, map(_decoded, column))
    else:
        text = column.cast(pl.String)
    if column.dtype.is_decimal():
        text = text.str.replace(r"\.0+$", "")
    return text.str.strip_chars().fill_null("")


def _floats(column: pl.Series) -> pl.Series:
    value = pl.col(column.name)
    whole = (value == value.round()) & (value.abs() < _LARGEST_EXACT)
    number = pl.when(whole).then(value).cast(pl.Int64).cast(pl.String)
    text = pl.when(value.is_not_nan()).then(pl.coalesce(number, value.cast(pl.String)))
    return column.to_frame().select(text).to_series()


def _joined(column: pl.Series, values: "map[object] | list[object]") -> pl.Series:
    texts = []
    for row, value in enumerate(values, start=1):
        try:
            texts.append(" ".join(_parts(value)))
        except TypeError as error:
            raise ValueError(
                f"column {column.name!r} holds an object in row {row}: {str(error)[:200]}; expected text, numbers or lists "
                "of them; choose another column, or bring what is needed out of the object"
            ) from error
    return pl.Series(column.name, texts, dtype=pl.String)


def _parts(value: object) -> list[str]:
    """The texts in a value, however deep its lists are."""
    if isinstance(value, dict):
        raise TypeError(json.dumps(value, default=str, ensure_ascii=False))
    if isinstance(value, list):
        return [part for element in value for part in _parts(element)]
    return [] if value is None or value == "" else [str(value)]


def _decoded(text: str | None) -> object:
    try:
        return json.loads(text) if text and text.lstrip()[:1] in "[{" else text
    except (ValueError, RecursionError):
        return text
