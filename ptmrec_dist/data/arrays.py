"""Feature arrays supplied by the user: one row per item, matched to the items of a packed data set.

Published data sets come as interactions with numbered items and one `.npy` per modality, whose row r belongs to item r.
A Parquet table names its items itself.

Shape suffixes: R rows of the array, I items, D width.
"""

import logging
from pathlib import Path

import numpy as np
import polars as pl

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.ids import range_of, without_fraction
from ptmrec_dist.data.npy import open_npy
from ptmrec_dist.data.tables.parquet import read_parquet
from ptmrec_dist.data.tables.values import as_text
from ptmrec_dist.errors import UserError, on_one_line

_log = logging.getLogger(__name__)
_EXAMPLES = 2
BY_ID = "item ids"
"""Row r of an array belongs to the item with id r, or a table names its items."""


def read_array(path: Path, name: str, dataset: Dataset, item_column: str = "item_id") -> tuple[np.ndarray, int, str]:
    """Read the features of every item from a file.

    Args:
        path: `.npy` with one row per item, or `.parquet` with a column of item ids and others of numbers or lists of numbers.
        name: The option that names the file, for messages.
        dataset: Packed data set.
        item_column: Column of the item ids in a Parquet file.

    Returns:
        float32 [I, D], row = item index; how many rows the file has; and how they were matched: `item ids`, `item ids, which
        count from 1`, or `the order of the packed items`.

    Raises:
        UserError: A file that cannot be read, numbers that are not finite, items without a row, or several rows of one.
    """
    if path.suffix.lower() == ".parquet":
        ids, rows_RD = _read_parquet(path, name, item_column)
        matched = BY_ID
    else:
        rows_RD = _read_npy(path, name)
        ids, matched = _ids_of_rows(len(rows_RD), path, name, dataset)
    row_of = {item: row for row, item in enumerate(ids)}
    if len(row_of) < len(ids):
        repeated = next(item for row, item in enumerate(ids) if row_of[item] != row)
        raise UserError(f"{name}: item {repeated!r} has several rows in {path}; expected one for each item")
    missing = [item for item in dataset.item_ids if item not in row_of]
    if missing:
        raise UserError(
            f"{name}: {path} has {len(ids)} rows, but none for {len(missing)} of {dataset.num_items} items "
            f"({', '.join(map(repr, missing[:_EXAMPLES]))}); expected a row for each item of {dataset.folder}"
        )
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused below
        table_ID = rows_RD[[row_of[item] for item in dataset.item_ids]].astype(np.float32)
    _check_numbers(table_ID, path, name, dataset)
    return table_ID, len(ids), matched


def unit_rows(table_ID: np.ndarray) -> np.ndarray:
    """Divide every row by its length; a row of zeros stays.

    Args:
        table_ID: float32 [I, D].

    Returns:
        float32 [I, D].
    """
    # By powers of two, which change no digit: squares of numbers near 1e30 or 1e-30 are infinite or zero in float32.
    _, exponents_I1 = np.frexp(np.abs(table_ID).max(axis=1, keepdims=True))
    scaled_ID = np.ldexp(table_ID, -exponents_I1)
    lengths_I1 = np.linalg.norm(scaled_ID, axis=1, keepdims=True)
    found: np.ndarray = (scaled_ID / np.where(lengths_I1 > 0, lengths_I1, 1)).astype(np.float32)
    return found


def _read_npy(path: Path, name: str) -> np.ndarray:
    try:
        rows_RD = open_npy(path)
    except ValueError as error:
        raise UserError(f"{name}: cannot read {path} ({error}); expected a .npy array or a .parquet table") from error
    if rows_RD.ndim != 2 or rows_RD.dtype.kind not in "fiu" or 0 in rows_RD.shape:
        found = f"{rows_RD.dtype} {rows_RD.shape}"
        raise UserError(f"{name}: {path} is {found}, expected numbers of shape (items, width)")
    return rows_RD


def _ids_of_rows(rows: int, path: Path, name: str, dataset: Dataset) -> tuple[list[str], str]:
    """The item of each row: row r is item r where ids are row numbers, else the rows follow the packed items.

    A data set may have lost its first or last items, so what counts is the range of the ids that were read.
    """
    ids = dataset.item_ids
    recorded, packed = dataset.manifest.ids, range_of(pl.Series(ids))
    least, greatest = recorded or packed or (0, 0)
    if packed is not None and least >= 1 and greatest == rows:
        return [str(row) for row in range(1, rows + 1)], f"{BY_ID}, which count from 1"
    if packed is not None and packed[1] < rows:
        if least >= 1 and (recorded is None or greatest < rows - 1):
            _log.warning(
                "%s: the first row of %s is taken as that of item 0, which is not among the items (%d to %d); if the rows "
                "begin with item 1, give a .parquet table with a column of item ids",
                name,
                path,
                least,
                greatest,
            )
        return [str(row) for row in range(rows)], BY_ID
    if rows == dataset.num_items:
        return ids, "the order of the packed items"
    raise UserError(
        f"{name}: {path} has {rows} rows for {dataset.num_items} items, and item ids ({ids[0]!r}, ...) are not row numbers; "
        "give one row for each packed item in their order (items.parquet), or a .parquet table with a column of item ids"
    )


def _read_parquet(path: Path, name: str, item_column: str) -> tuple[list[str], np.ndarray]:
    try:
        table = read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{name}: cannot read {path} ({on_one_line(error)[:200]}); expected a Parquet table") from error
    if item_column not in table.columns:
        raise UserError(
            f"{name}: {path} has no column {item_column!r} ({', '.join(table.columns[:8])}); name that of the item ids by "
            "--item_column"
        )
    try:
        ids = without_fraction(as_text(table[item_column])).to_list()
    except ValueError as error:
        raise UserError(f"{name}: {path}: {error}; name the column of the item ids by --item_column") from error
    values = table.drop(item_column)
    kinds = values.dtypes
    if len(kinds) == 1 and isinstance(kinds[0], pl.List | pl.Array):
        lists = values.to_series()
        widths = (lists.list if isinstance(kinds[0], pl.List) else lists.arr).len().unique().to_list()
        element = kinds[0].inner
        if not isinstance(element, pl.DataType) or not element.is_numeric():
            raise UserError(f"{name}: lists of {path} hold {element}, expected numbers")
        if len(widths) != 1 or not widths[0]:
            raise UserError(
                f"{name}: lists of {path} have lengths {sorted(map(str, widths))[:4]}, expected one length, 1 or more"
            )
        return ids, np.array(lists.to_list(), dtype=np.float64)
    if not kinds or not all(kind.is_numeric() for kind in kinds):
        odd = [column for column, kind in values.schema.items() if not kind.is_numeric()]
        raise UserError(
            f"{name}: columns {', '.join(odd[:4]) or '(none)'} of {path} are not numbers; expected item ids and one column "
            "of lists or a column for each number"
        )
    return ids, values.cast(pl.Float64).to_numpy()


def _check_numbers(table_ID: np.ndarray, path: Path, name: str, dataset: Dataset) -> None:
    bad = np.flatnonzero(~np.isfinite(table_ID).all(axis=1))
    if len(bad):
        examples = ", ".join(repr(dataset.item_ids[item]) for item in bad[:_EXAMPLES])
        raise UserError(
            f"{name}: rows of {len(bad)} items in {path} hold NaN or infinite values ({examples}); replace them"
        )
