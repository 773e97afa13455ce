"""A small data set on disk for tests: real images, texts and interactions."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from ptmrec_dist.config import PackConfig


def write_catalogue(folder: Path, *, num_items: int = 40, num_users: int = 30, density: float = 0.5) -> PackConfig:
    """Write items.csv, images/ and interactions.csv, where each user has a random subset of the items."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for item in range(num_items):
        pixels = rng.integers(0, 256, (24, 20 + item, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{item}.jpg")
    ids = [f"i{item}" for item in range(num_items)]
    texts = [f"thing number {item}, très chic" for item in range(num_items)]
    images = [f"images/{item}.jpg" for item in range(num_items)]
    pl.DataFrame({"item_id": ids, "text": texts, "image": images}).write_csv(folder / "items.csv")
    users, items = np.nonzero(rng.random((num_users, num_items)) < density)
    taken = {"user_id": [f"u{user}" for user in users], "item_id": [f"i{item}" for item in items]}
    pl.DataFrame(taken).write_csv(folder / "interactions.csv")
    return PackConfig(
        items=folder / "items.csv", interactions=folder / "interactions.csv", out=folder / "packed", workers=1
    )


def write_arrow(folder: Path, rows: list[dict[str, object]]) -> None:
    """A table as Hugging Face's `datasets` saves it to disk."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def append(path: Path, *lines: str) -> None:
    """Add lines to a table."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_report(folder: Path) -> dict[str, dict[str, object]]:
    """The validation report of a packed data set."""
    report: dict[str, dict[str, object]] = json.loads((folder / "manifest.json").read_text())["report"]
    return report
