"""Ids of users and items: how they are written, ordered, numbered, and found in another table.

A log repeats each id many times, so its columns of ids are held as categories: a number of 4 bytes a row.

Shape suffixes: E interactions.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import polars as pl

_WHOLE_FLOAT = r"^-?\d+\.0+$"


def without_fraction(ids: pl.Series) -> pl.Series:
    """Write ids as integers where all of a column are whole floats (`1001.0`), as columns with missing values often are.

    Args:
        ids: Ids as text, empty where there is none.

    Returns:
        The ids without `.0`; unchanged if any id is not a whole float, so that no two ids become one.
    """
    whole = ids.filter(ids != "").str.contains(_WHOLE_FLOAT)
    return ids.str.replace(r"\.0+$", "") if len(whole) and whole.all() else ids


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
        ids: Ids, as text or categories, with repetitions.

    Returns:
        The distinct ids in order.
    """
    distinct = pl.DataFrame({"id": ids.unique().cast(pl.String)}).with_columns(
        number=pl.col("id").cast(pl.Int64, strict=False)
    )
    order = ["id"] if distinct["number"].has_nulls() else ["number", "id"]
    return distinct.sort(order)["id"]


def respelled(ids: pl.Series, spell: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Change how ids that are held as categories are written.

    Args:
        ids: Categories, with repetitions.
        spell: Gets the distinct ids as text and returns how each is to be written.

    Returns:
        The ids in that spelling.
    """
    distinct = ids.unique().cast(pl.String)
    spelled = spell(distinct)
    changed = distinct != spelled
    return ids.replace(distinct.filter(changed), spelled.filter(changed)) if changed.any() else ids


def as_enum(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Number ids that are held as categories by their position in a list.

    Args:
        ids: Categories, with repetitions, all of them in `known`.
        known: Distinct ids.

    Returns:
        The same ids, of an `Enum` type whose categories are `known`.
    """
    distinct = ids.unique()
    positions = pl.DataFrame({"id": known}).with_row_index("position")
    found = distinct.cast(pl.String).to_frame("id").join(positions, on="id", how="left", maintain_order="left")
    codes = distinct.to_physical().to_numpy()
    position_of = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.uint32)
    position_of[codes] = found["position"]
    return pl.Series(ids.name, position_of[ids.to_physical().to_numpy()]).cat.to(pl.Enum(known))


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
        ids: Ids, of an `Enum` type.

    Returns:
        Position of each id, unsigned integers of 1 to 4 bytes, [E].
    """
    return ids.to_physical().to_numpy()


def _by_number(ids: pl.Series) -> pl.DataFrame:
    """The distinct ids that are whole numbers which no other id has."""
    whole = pl.DataFrame({"id": ids.unique()}).filter(pl.col("id").str.contains(r"^\d+(\.0+)?$"))
    numbered = whole.with_columns(number=pl.col("id").str.replace(r"\.0+$", "").str.strip_chars_start("0"))
    return numbered.filter(pl.col("number").is_unique())
