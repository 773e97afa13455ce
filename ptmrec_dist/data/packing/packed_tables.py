"""The Parquet tables of a packed data set: items, users and the interactions of each part."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from ptmrec_dist.data.catalogue import ATTRIBUTE
from ptmrec_dist.files import sha256

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How polars quotes an error of the system, such as that of a full disk: in words alone, without the file."""
_ROWS = 2**18
"""Rows of a table that are text at a time."""


def write_tables(
    items: pl.DataFrame, user_ids: pl.Series, parts: Mapping[str, pl.DataFrame], folder: Path
) -> tuple[str, dict[str, str]]:
    """Write the tables.

    Args:
        items: `item_id`, `title`, `text`, `part`, `sha256`, `shard`, where items lack a modality `has_image` or `has_text`, and
            attributes, in the order of the items.
        user_ids: Ids in the order of the users.
        parts: Part to its interactions.
        folder: Folder of the data set.

    Returns:
        Fingerprint of all content, images included, and the sha256 of each file.

    Raises:
        OSError: The disk does not take the files.
    """
    tables = {f"interactions/{part}": table for part, table in parts.items()}
    columns = ["item_id", "title", "text", "part", "sha256", "shard"]
    absent = [name for name in ("has_image", "has_text") if name in items.columns]
    attributes = [name for name in items.columns if name.startswith(ATTRIBUTE)]
    tables["items"] = _numbered(items.select(*columns, *absent, *attributes), "item_index")
    tables["users"] = _numbered(user_ids.to_frame("user_id"), "user_index")
    digest, files = hashlib.sha256(), {}
    (folder / "interactions").mkdir()
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        _write(table.rechunk(), path)
        files[f"{name}.parquet"] = sha256(path)
        # Content rather than bytes, which change with the library that writes them; the shard of an item is left out.
        digest.update(f"{name}\n".encode())
        for start, rows in enumerate(table.drop("shard", strict=False).iter_slices(_ROWS)):
            digest.update(rows.write_csv(include_header=start == 0).encode())
    return digest.hexdigest(), files


def _write(table: pl.DataFrame, path: Path) -> None:
    try:
        table.write_parquet(path)
    except (PolarsError, OSError) as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _numbered(table: pl.DataFrame, name: str) -> pl.DataFrame:
    return table.with_row_index(name).with_columns(pl.col(name).cast(pl.Int64))
