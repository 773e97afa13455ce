"""The catalogue: one row per item, with its text and the path of its image."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ptmrec_dist.config import CatalogueColumnsConfig
from ptmrec_dist.config.pattern import Pattern, is_pattern
from ptmrec_dist.data.ids import without_fraction
from ptmrec_dist.data.report import Tally
from ptmrec_dist.data.tables.reading import Table

_log = logging.getLogger(__name__)
ATTRIBUTE = "attribute:"
"""Begins the names of columns that are kept for filters."""
_TITLE_LENGTH = 80
_SHOW = "row {row}: item {item_id!r}"
_SHOW_IMAGE = _SHOW + ", image {image!r}"
_URL = r"^(?i)(?:[a-z][a-z0-9+.-]*:)?//|^data:"


def read_catalogue(
    path: Path,
    columns: CatalogueColumnsConfig,
    separator: str | None = None,
    header: bool = True,
    flags: str = "--",
    attributes: Sequence[str] = (),
) -> pl.DataFrame:
    """Read a catalogue as it is, bad rows included.

    It may have images alone or texts alone: a column that is absent under its default name is not required.

    Args:
        path: Text, JSON lines or Parquet.
        columns: Names of the columns.
        separator: Column separator of a text file, where it does not follow from the file name.
        header: Whether the first row of a text file names the columns.
        flags: What the options of both begin with.
        attributes: Further columns to keep.

    Returns:
        `row` (counted from 1), `item_id`, `title`, `text`, `image`, and attributes with `ATTRIBUTE` before their names; empty
        text where a value is missing.

    Raises:
        UserError: The file cannot be read, lacks a column or has no rows.
    """
    item = columns.items_id or columns.item
    source = Table(path, "items", separator, header, columns=_options(columns), flags=flags)
    texts, image = _content_columns(source, columns)
    named = (columns.title,) if columns.names("title") else ()
    required = (item, *texts, *columns_of(image), *named, *attributes)
    table = source.read(required, optional=(columns.title,), lists=(columns.title, *texts, *attributes))
    return table.select(
        "row",
        **_described(table, item, columns.title, texts),
        image=filled_in(table.with_columns(without_fraction(table[item])), image),
        **{ATTRIBUTE + name: pl.col(name) for name in attributes},
    )


def _described(table: pl.DataFrame, item: str, title: str, texts: Sequence[str]) -> dict[str, pl.Expr]:
    """Id, title and text of each row, from the columns of these names; an item without a title has the start of its text."""
    ids = pl.lit(without_fraction(table[item]))
    filled = [pl.when(pl.col(name) != "").then(pl.col(name)) for name in texts]
    text = pl.concat_str(*filled, pl.lit(""), separator=" ", ignore_nulls=True).str.strip_chars_end()
    given = pl.col(title) if title in table.columns else pl.lit("")
    titles = pl.when(given != "").then(given).when(text != "").then(text.str.slice(0, _TITLE_LENGTH)).otherwise(ids)
    return {"item_id": ids, "title": titles, "text": text}


def _options(columns: CatalogueColumnsConfig) -> dict[str, object]:
    """The settings that name the catalogue's columns; that of the id is the one that leaves the interactions' as it is."""
    named = {name: value for name, value in vars(columns).items() if name in ("text", "title", "image", "attributes")}
    return {"items_id": columns.items_id or columns.item} | named


def columns_of(value: str) -> tuple[str, ...]:
    """List the columns that a value of each item is read from.

    Args:
        value: Name of a column, a pattern of several, or empty where there is none.

    Returns:
        Their names.
    """
    if is_pattern(value):
        return Pattern.parse(value, "columns.image").columns
    return (value,) if value else ()


def filled_in(table: pl.DataFrame, value: str) -> pl.Expr:
    """Read a value of each item from the columns that `columns_of` lists.

    Args:
        table: The columns, as text.
        value: As in `columns_of`.

    Returns:
        The value of each row; empty where one of the columns is.
    """
    if not is_pattern(value):
        return pl.col(value) if value else pl.lit("")
    pattern = Pattern.parse(value, "columns.image")
    rows = table.select(pattern.columns).iter_rows(named=True)
    return pl.lit(pl.Series([pattern.fill(row) for row in rows], dtype=pl.String))


def _content_columns(source: Table, columns: CatalogueColumnsConfig) -> tuple[Sequence[str], str]:
    """Names of the columns with text that are read, and the column or pattern of the images, empty without any."""
    default = CatalogueColumnsConfig()
    no_text = columns.text == default.text and not set(columns.text) & set(source.columns)
    no_image = columns.image == default.image and columns.image not in source.columns
    if no_text and no_image:  # `Table.read` reports them as missing
        return columns.text, columns.image
    for absent, column, other in ((no_text, "text", "images"), (no_image, "image", "texts")):
        if absent:
            _log.warning("items: no column %r; read with %s alone (--columns.%s names another)", column, other, column)
    return () if no_text else columns.text, "" if no_image else columns.image


def drop_bad_items(catalogue: pl.DataFrame, tally: Tally, images: Path, keep_incomplete: bool = False) -> pl.DataFrame:
    """Drop the rows that are invalid in themselves, and those that repeat the id, the text and the image of one before.

    Other rows of the same id stay: which of them is the item is decided once their images were read (`keep_readable`).

    Args:
        catalogue: What `read_catalogue` returns.
        tally: Counts of the catalogue's rows.
        images: Folder that image paths are relative to, and may not leave.
        keep_incomplete: Whether rows with one of text and image stay.

    Returns:
        The valid rows, with `path`: path of the image, empty without one.
    """
    no_text, no_image = pl.col("text") == "", pl.col("image") == ""
    catalogue = tally.drop(catalogue, pl.col("item_id") == "", "empty item id", show="row {row}")
    has_text, has_image = (bool((catalogue[name] != "").any()) for name in ("text", "image"))
    if keep_incomplete and has_text and has_image:
        catalogue = tally.drop(catalogue, no_text & no_image, "neither text nor image", show=_SHOW)
    else:
        if has_text:
            catalogue = tally.drop(catalogue, no_text, "empty text", show=_SHOW)
        if has_image or not has_text:
            catalogue = tally.drop(catalogue, no_image, "no image path", show=_SHOW)
    catalogue = with_paths(catalogue, tally, images)
    repeated = ~pl.struct("item_id", "text", "path").is_first_distinct()
    return tally.drop(catalogue, repeated, "duplicate item id", show=_SHOW)


def where_instead(missing: pl.DataFrame) -> str:
    """Suggest another image folder, where paths already start with the name of the one that was given.

    Args:
        missing: Rows whose image file is missing, with `image` and `path`.

    Returns:
        Words to add to a message; none where no folder above has the first image.
    """
    image, path = missing.row(0, named=True)["image"], missing.row(0, named=True)["path"]
    images = Path(path.removesuffix(os.path.normpath(image)))
    found = next((folder for folder in images.parents[:2] if (folder / image).is_file()), None)
    return "" if found is None else f"; with --images {found}, the first one would be found"


def with_paths(catalogue: pl.DataFrame, tally: Tally, images: Path) -> pl.DataFrame:
    """Find the path of each row's image, and drop rows whose path is none inside the image folder.

    Args:
        catalogue: `row`, `item_id`, and `image`, empty where there is none.
        tally: Counts of the rows.
        images: Folder that image paths are relative to, and may not leave.

    Returns:
        The other rows, with `path`: absolute path of the image, empty without one.
    """
    url = pl.col("image").str.contains(_URL)
    hint = "images are read from files: fetch them by `ptmrec download`"
    catalogue = tally.drop(catalogue, url, "image is a URL", show=_SHOW_IMAGE, hint=hint)
    root = os.path.abspath(images)
    paths = [os.path.normpath(os.path.join(root, image)) if image else "" for image in catalogue["image"]]
    catalogue = catalogue.with_columns(path=pl.Series(paths, dtype=pl.String))
    outside = (pl.col("image") != "") & ~pl.col("path").str.starts_with(os.path.join(root, ""))
    return tally.drop(catalogue, outside, "image path outside the image folder", show=_SHOW_IMAGE)


def catalogue_of_ids(item_ids: pl.Series) -> pl.DataFrame:
    """Build a catalogue for interactions that come without one.

    Args:
        item_ids: Distinct item ids, in the order of the items.

    Returns:
        `row`, `item_id`, `title` (the id) and `text` (empty).
    """
    table = pl.DataFrame({"item_id": item_ids, "title": item_ids})
    return table.with_columns(text=pl.lit("")).with_row_index("row", offset=1)
