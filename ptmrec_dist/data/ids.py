"""Ids of users and items: how they are written, ordered, numbered, and found in another table.

A log repeats each id many times, so its columns of ids are held as categories: a number of 4 bytes a row.

Shape suffixes: E interactions.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import polars as pl

from ptmrec_dist.data.blocks import computed, slices_of
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch

_WHOLE_FLOAT = r"^-?\d+\.0+$"
_ROW_NUMBER = r"^(?:0|[1-9][0-9]{0,17})$"


def without_fraction(ids: pl.Series) -> pl.Series:
    """Write ids as integers where all of a column are whole floats (`1001.0`), as columns with missing values often are.

    Args:
        ids: Ids as text, empty where there is none.

    Returns:
        The ids without `.0`; unchanged if any id is not a whole float, so that no two ids become one.
    """
    whole = ids.filter(ids != "").str.contains(_WHOLE_FLOAT)
    return ids.str.replace(r"\.0+$", "") if len(whole) and whole.all() else ids


def range_of(ids: pl.Series) -> tuple[int, int] | None:
    """Find the least and the greatest id where all are row numbers: `0`, `17`, but not `017`.

    Args:
        ids: Ids as text, empty where there is none.

    Returns:
        Both; None where some id is no such number, or there is none.
    """
    given = ids.filter(ids != "")
    if given.is_empty() or not given.str.contains(_ROW_NUMBER).all():
        return None
    numbers = given.cast(pl.Int64)
    return cast(int, numbers.min()), cast(int, numbers.max())


def spelled_as(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Find ids that differ from known ones only by leading zeros or `.0`, as in tables that were once stored as numbers.

    Args:
        ids: Ids, with repetitions.
        known: Known ids, with repetitions.

    Returns:
        As long as `ids`: the known spelling of an id that is not itself known, if exactly one known id and exactly one id
        have that number; else the id.
    """
    theirs, ours = _by_number(ids), _by_number(known)
    spelling = theirs.join(ours, on="number", suffix="_known").filter(~pl.col("id").is_in(known.implode()))
    return ids.replace(spelling["id"], spelling["id_known"])


def sort_ids(ids: pl.Series) -> pl.Series:
    """Sort ids independently of their order in the file: numerically if all are numbers, else alphabetically.

    Args:
        ids: Categories, with repetitions.

    Returns:
        The distinct ids in order, as text.
    """
    distinct = _distinct(ids).select("id", number=pl.col("id").cast(pl.Int64, strict=False))
    order = ["id"] if distinct["number"].has_nulls() else ["number", "id"]
    return distinct.sort(order)["id"]


def respelled(ids: pl.Series, spell: Callable[[pl.Series], pl.Series], scratch: Scratch = IN_MEMORY) -> pl.Series:
    """Change how ids that are held as categories are written.

    Args:
        ids: Categories, with repetitions.
        spell: Gets the distinct ids as text and returns how each is to be written.
        scratch: Where columns are stored.

    Returns:
        The ids in that spelling; the same column if none changes.
    """
    distinct = _distinct(ids)
    spelled = spell(distinct["id"])
    if (distinct["id"] == spelled).all():
        return ids
    codes = spelled.cast(ids.dtype).to_physical()
    return _as(ids.dtype, _taken(ids, distinct["code"], codes, scratch), ids.name)


def as_enum(ids: pl.Series, known: pl.Series, scratch: Scratch = IN_MEMORY) -> pl.Series:
    """Number ids that are held as categories by their position in a list.

    Args:
        ids: Categories, with repetitions, all of them in `known`.
        known: Distinct ids.
        scratch: Where columns are stored.

    Returns:
        The same ids, of an `Enum` type whose categories are `known`.
    """
    dtype = pl.Enum(known)
    if ids.dtype == dtype:
        return ids
    positions = pl.DataFrame({"id": known}).with_row_index("position")
    found = _distinct(ids).join(positions, on="id", how="left", maintain_order="left")
    numbers = found["position"].cast(pl.Series(dtype=dtype).to_physical().dtype)
    return _as(dtype, _taken(ids, found["code"], numbers, scratch), ids.name)


def not_among(ids: pl.Series, known: pl.Series, scratch: Scratch = IN_MEMORY) -> np.ndarray:
    """Find ids that are held as categories and are not in a list.

    Args:
        ids: Categories, with repetitions.
        known: Ids, as text.
        scratch: Where arrays are made.

    Returns:
        True for each such id, bool [E].
    """
    distinct = _distinct(ids)
    return _taken(ids, distinct["code"], ~distinct["id"].is_in(known.implode()), scratch)


def known_to(ids: pl.Series) -> pl.Series:
    """List the categories of ids.

    Args:
        ids: Ids, of an `Enum` type.

    Returns:
        All ids that they could have, in order, as text.
    """
    return cast(pl.Enum, ids.dtype).categories


def numbers_of(ids: pl.Series) -> np.ndarray:
    """Number ids by their position among the categories.

    Args:
        ids: Categories, or ids of an `Enum` type.

    Returns:
        Position of each id, unsigned integers of 1 to 4 bytes, [E].
    """
    return ids.to_physical().to_numpy()


def _distinct(ids: pl.Series) -> pl.DataFrame:
    """The categories that occur: `code`, their number, increasing, and `id`, text."""
    codes_E = numbers_of(ids)
    occurs = np.zeros(int(codes_E.max(initial=0)) + 1, dtype=bool)
    for block in slices_of(len(codes_E)):
        occurs[codes_E[block]] = True
    codes = pl.Series(np.flatnonzero(occurs)).cast(ids.to_physical().dtype)
    return pl.DataFrame({"code": codes, "id": codes.cat.to(ids.dtype).cast(pl.String)})


def _taken(ids: pl.Series, codes: pl.Series, values: pl.Series, scratch: Scratch) -> np.ndarray:
    """The value of each id, given those of the distinct codes, [E]."""
    codes_E = numbers_of(ids)
    value_of = np.zeros(int(codes.to_numpy().max(initial=0)) + 1, dtype=values.to_numpy().dtype)
    value_of[codes.to_numpy()] = values.to_numpy()
    return computed(lambda block: value_of[codes_E[block]], len(codes_E), value_of.dtype, scratch)


def _as(dtype: pl.DataType, codes_E: np.ndarray, name: str) -> pl.Series:
    return pl.Series(name, codes_E).cat.to(dtype)


def _by_number(ids: pl.Series) -> pl.DataFrame:
    """The distinct ids that are whole numbers which no other id has."""
    whole = pl.DataFrame({"id": ids.unique()}).filter(pl.col("id").str.contains(r"^\d+(\.0+)?$"))
    numbered = whole.with_columns(number=pl.col("id").str.replace(r"\.0+$", "").str.strip_chars_start("0"))
    return numbered.filter(pl.col("number").is_unique())
