"""The catalogue: one row an item, with its text and the path of its image."""

import os
from pathlib import Path

import polars as pl

from ptmrec_dist.config import ColumnsConfig
from ptmrec_dist.data.ids import without_fraction
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables import Table

_TITLE_LENGTH = 80
_SHOW = "row {row}: item {item_id!r}"
_SHOW_IMAGE = _SHOW + ", image {image!r}"
_URL = r"^(?i)(?:[a-z][a-z0-9+.-]*:)?//|^data:"


def read_catalogue(
    path: Path, columns: ColumnsConfig, separator: str | None = None, header: bool = True
) -> pl.DataFrame:
    """Read a catalogue as it is, bad rows included.

    Args:
        path: Text, JSON lines or Parquet.
        columns: Names of the columns.
        separator: What stands between the columns of a text file, where that does not follow from its name.
        header: Whether the first row of a text file names the columns.

    Returns:
        `row` (counted from 1), `item_id`, `title`, `text`, `image`; empty text where a value is missing.

    Raises:
        UserError: The file cannot be read, lacks a column or has no rows.
    """
    item = columns.items_id or columns.item
    needed = [item, *columns.text, columns.image, *([columns.title] if columns.names("title") else [])]
    texts = (columns.title, *columns.text)
    table = Table(path, "items", separator, header).read(needed, optional=(columns.title,), lists=texts)
    filled = [pl.when(pl.col(name) != "").then(pl.col(name)) for name in columns.text]
    text = pl.concat_str(filled, separator=" ", ignore_nulls=True)
    title = pl.col(columns.title) if columns.title in table.columns else pl.lit("")
    return table.select(
        "row",
        item_id=without_fraction(table[item]),
        title=pl.when(title != "").then(title).otherwise(text.str.slice(0, _TITLE_LENGTH)),
        text=text,
        image=pl.col(columns.image),
    )


def drop_bad_items(catalogue: pl.DataFrame, tally: Tally, images: Path) -> pl.DataFrame:
    """Leave out the rows that are bad on their face; of rows with one id, the first good one stays.

    Args:
        catalogue: What `read_catalogue` returns.
        tally: Account of the catalogue's rows.
        images: Folder that image paths are relative to, and may not leave.

    Returns:
        The good rows, with `path`: where the image lies.
    """
    catalogue = tally.drop(catalogue, pl.col("item_id") == "", "empty item id", show="row {row}")
    catalogue = tally.drop(catalogue, pl.col("text") == "", "empty text", show=_SHOW)
    catalogue = tally.drop(catalogue, pl.col("image") == "", "no image path", show=_SHOW)
    url = pl.col("image").str.contains(_URL)
    hint = "images are read from files: download them, then give their paths"
    catalogue = tally.drop(catalogue, url, "image is a URL", show=_SHOW_IMAGE, hint=hint)
    root = os.path.abspath(images)
    paths = [os.path.normpath(os.path.join(root, image)) for image in catalogue["image"]]
    catalogue = catalogue.with_columns(path=pl.Series(paths, dtype=pl.String))
    outside = ~pl.col("path").str.starts_with(os.path.join(root, ""))
    catalogue = tally.drop(catalogue, outside, "image path outside the image folder", show=_SHOW_IMAGE)
    return tally.drop(catalogue, ~pl.col("item_id").is_first_distinct(), "duplicate item id", show=_SHOW)


def catalogue_of_ids(item_ids: pl.Series) -> pl.DataFrame:
    """Make up a catalogue for interactions that come without one.

    Args:
        item_ids: Distinct item ids, in the order of the items.

    Returns:
        `row`, `item_id`, `title` (the id) and `text` (empty).
    """
    table = pl.DataFrame({"item_id": item_ids, "title": item_ids})
    return table.with_columns(text=pl.lit("")).with_row_index("row", offset=1)
