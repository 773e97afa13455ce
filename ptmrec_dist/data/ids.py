"""Ids of users and items: how they are written, ordered, numbered, and found in another table."""

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
        ids: Ids, as text, with repetitions.

    Returns:
        The distinct ids in order.
    """
    distinct = pl.DataFrame({"id": ids.unique()}).with_columns(number=pl.col("id").cast(pl.Int64, strict=False))
    order = ["id"] if distinct["number"].has_nulls() else ["number", "id"]
    return distinct.sort(order)["id"]


def index_of(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Number ids by their position in a list.

    Args:
        ids: Ids, all of them in `known`.
        known: Distinct ids.

    Returns:
        Position of each id, int64, as long as `ids`.
    """
    positions = pl.DataFrame({"id": known, "index": pl.Series(np.arange(len(known), dtype=np.int64))})
    return ids.to_frame("id").join(positions, on="id", how="left", maintain_order="left")["index"]


def _by_number(ids: pl.Series) -> pl.DataFrame:
    """The distinct ids that are whole numbers which no other id has."""
    whole = pl.DataFrame({"id": ids.unique()}).filter(pl.col("id").str.contains(r"^\d+(\.0+)?$"))
    numbered = whole.with_columns(number=pl.col("id").str.replace(r"\.0+$", "").str.strip_chars_start("0"))
    return numbered.filter(pl.col("number").is_unique())
