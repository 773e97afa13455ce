"""`ptmrec import`: read a published data set row by row, and write the tables that `ptmrec pack` reads.

The tables are written in batches, so that memory depends neither on the catalogue nor on the log. Every row is counted: those
written, and those left out by reason.
"""

import csv
import importlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ptmrec_dist.config import ImportConfig
from ptmrec_dist.data.importers.base import Importer, Interaction, Item
from ptmrec_dist.data.importers.rows import Unreadable
from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.files import staged, write_atomically
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.progress import Progress

REPORT_FILE = "import.json"
"""In the folder that is written: how many rows were read, written, and left out for which reason."""
_OURS = {REPORT_FILE, "items.parquet", "interactions.parquet", "images"}
_BATCH = 50_000
_MOST_EXAMPLES = 3
_Row = Item | Interaction | Unreadable


@dataclass
class Counts:
    """Rows of one table."""

    read: int = 0
    """Rows read."""
    written: int = 0
    """Rows written."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason to number of rows."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason to some of the rows."""
    with_image: int = 0
    """Items with an image."""

    def leave_out(self, row: Unreadable) -> None:
        """Count a row that is left out.

        Args:
            row: Why, and where it is.
        """
        self.left_out[row.reason] = self.left_out.get(row.reason, 0) + 1
        shown = self.examples.setdefault(row.reason, [])
        if len(shown) < _MOST_EXAMPLES:
            shown.append(row.example)

    def summary(self, name: str) -> str:
        """Format the counts as one line.

        Args:
            name: What the rows are.

        Returns:
            Rows read, written and left out by reason, with examples.
        """
        left = [
            f"{count:,} left out: {reason} ({'; '.join(self.examples[reason])})"
            for reason, count in self.left_out.items()
        ]
        images = [f"{self.with_image:,} with an image"] if name == "items" else []
        return ", ".join([f"{self.read:,} {name} read", f"{self.written:,} written", *images, *left])


@exclusive_out
def import_data(config: ImportConfig) -> None:
    """Read a published data set and write its items and interactions as tables for `ptmrec pack`.

    Args:
        config: Settings.

    Raises:
        UserError: A file is missing or damaged, a table would be empty, or `out` holds something else.
    """
    if not config.source.is_dir():
        raise UserError(f"source: got {config.source}, expected the folder of the data set")
    out = config.out.resolve()
    _check_replaceable(out)
    module, name = config.importer.split(":")
    importer: Importer = getattr(importlib.import_module(module), name)(config.source)
    counts: dict[str, Counts] = {}
    with staged(out) as fresh:
        if importer.item_files:
            counts["items"] = _write(importer.items(), Item, fresh, "items")
        counts["interactions"] = _write(importer.interactions(), Interaction, fresh, "interactions")
        report = {name: asdict(count) for name, count in counts.items()}
        write_atomically(fresh / REPORT_FILE, json.dumps({"format": config.format, **report}, indent=1))
    for name, count in counts.items():
        print(count.summary(name))
    print(_next_step(config, importer, (out / "images").is_dir()))


def _check_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file, expected a folder; choose another --out")
    foreign = sorted({path.name for path in out.iterdir()} - _OURS) if out.is_dir() else []
    if foreign:
        raise UserError(f"out: {out} also holds {foreign[0]!r}, which replacing it would delete; choose another --out")


def _write(rows: Iterable[_Row], kind: type, folder: Path, name: str) -> Counts:
    """Write a table; images that are part of its rows go to files beside it."""
    counts = Counts()
    columns = [item.name for item in fields(kind) if item.name != "image_bytes"]
    schema = pa.schema([(column, pa.string()) for column in columns])
    with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
        counted = _counted(_read(rows, name), counts, folder, name)
        while batch := list(islice(counted, _BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    if not counts.written:
        raise UserError(f"source: {counts.summary(name)}; expected at least one row")
    return counts


def _read(rows: Iterable[_Row], name: str) -> Iterator[_Row]:
    """The rows; an error while they are read is one of the source, not of what is written."""
    try:
        yield from rows
    except (OSError, EOFError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(
            f"source: cannot read the {name} ({on_one_line(error)}); a file is damaged or cut off"
        ) from error


def _counted(rows: Iterable[_Row], counts: Counts, folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for row in Progress(rows, desc=name, unit=" rows", unit_scale=True):
        counts.read += 1
        if isinstance(row, Unreadable):
            counts.leave_out(row)
            continue
        values = dict(vars(row))
        if isinstance(row, Item):
            values["image"] = _stored_image(row, folder, counts.read)
            counts.with_image += bool(values["image"])
        counts.written += 1
        yield {column: _encodable(value) for column, value in values.items() if isinstance(value, str)}


def _encodable(text: str) -> str:
    """A JSON text cut in the middle of an emoji ends in half of a surrogate pair, which UTF-8 has no bytes for."""
    return text.encode(errors="replace").decode()


def _stored_image(item: Item, folder: Path, number: int) -> str:
    if item.image_bytes is None:
        return item.image
    path = f"images/{number // 1000:06d}/{number:09d}"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(item.image_bytes)
    return path


def _next_step(config: ImportConfig, importer: Importer, has_images: bool) -> str:
    """The commands that pack what was written, and that train on it."""
    settings: dict[str, object] = {"interactions": config.out / "interactions.parquet"}
    if importer.item_files:
        settings |= {"items": config.out / "items.parquet", "images": config.out if has_images else config.source}
        read = "--encoder.model ENCODER"
    else:
        settings |= {"split": "given", "core": 0}
        arrays = {f"{name}_npy": path for name, path in importer.arrays().items()}
        read = _options(arrays, "features.") or "--recommenders bpr"
    grid = {"paradigms": "frozen", "seeds": 0, "out": Path("runs", config.out.name)}
    return (
        f"next: ptmrec pack {_options(settings)} {_options({'out': Path('shards', config.out.name)})}\n"
        f"or, to pack, extract features and train at once: ptmrec experiment {_options(settings, 'pack.')} {read} "
        f"{_options(grid)}"
    )


def _options(settings: Mapping[str, object], prefix: str = "") -> str:
    """Options as a shell reads them."""
    return " ".join(f"--{prefix}{name} {shlex.quote(str(value))}" for name, value in settings.items())
