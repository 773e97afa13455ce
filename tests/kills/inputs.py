"""What the killed commands read."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist import cli
from tests.conftest import Project
from tests.data.small_catalogue import write_arrow

MODEL = "catalogue"
"""Name of the registered model."""
OFF = ("--tracking.enabled", "false")
SHORT = ("--epochs", "3", "--batch_size", "64", "--device", "cpu")
_NEW_ITEMS = 3


@dataclass(frozen=True)
class Inputs:
    """What the commands read."""

    project: Project
    """Catalogue, shards, encoder, features and a run of stage 1."""
    folder: Path
    """Where the rest is made."""
    empty_sqlite: Path
    """A store as MLflow creates it."""
    tuned: Path
    """A run of stage 2."""
    films: Path
    """A data set as MovieLens publishes it."""
    arrow: Path
    """A data set as Hugging Face's `datasets` saves it, with images in its rows."""
    new_items: Path
    """A catalogue of new items."""
    addresses: Path
    """A catalogue with URLs of images."""
    host: str
    """Where they are served."""

    @cached_property
    def other_shards(self) -> Path:
        """A data set packed from another catalogue."""
        items, used = pl.read_csv(self.project.source / "items.csv"), self.folder / "used.csv"
        items.with_columns(pl.col("text") + ", used").write_csv(used)
        assert cli.main(pack(self.project, used, self.folder / "other")) == 0
        return self.folder / "other"

    @cached_property
    def store(self) -> Path:
        """An MLflow store in SQLite: two champions of a model, one after the other, and a candidate."""
        store = self.folder / "store"
        store.mkdir()
        shutil.copy(self.empty_sqlite, store)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
            for run, alias in ((self.tuned, "champion"), (self.project.stage1, "champion"), (self.tuned, "candidate")):
                assert cli.main(["register", "--run", f"{run}", "--name", MODEL, "--alias", alias]) == 0
        return store


def stage2(project: Project, out: Path) -> list[str]:
    """Command line of a short stage 2."""
    rest = (
        "--tuning.method",
        "prompt",
        "--prompt.depth",
        "1",
        "--prompt.length",
        "2",
        "--checkpoint_every",
        "2",
        "--keep",
        "last",
    )
    return ["stage2", "--stage1", f"{project.stage1}", "--out", f"{out}", *rest, *SHORT, *OFF]


def pack(project: Project, items: Path, out: Path) -> list[str]:
    """Command line that packs a catalogue."""
    tables = ("--items", f"{items}", "--interactions", f"{project.source}/interactions.csv")
    given = ("--images", f"{project.source}", "--split", "cold_items", "--core", "2", "--workers", "1")
    return ["pack", *tables, *given, "--out", f"{out}"]


@contextmanager
def made(project: Project, empty_sqlite: Path, folder: Path) -> Iterator[Inputs]:
    """Make the inputs; images are served while the block runs."""
    tuned, items = folder / "tuned", pl.read_csv(project.source / "items.csv")
    assert cli.main(stage2(project, tuned)) == 0
    _write_films(folder / "films")
    _write_arrow(project, folder / "arrow")
    new_items = folder / "new.csv"
    changed = {"item_id": "new" + items["item_id"], "text": items["text"] + ", new"}
    items.with_columns(**changed).head(_NEW_ITEMS).write_csv(new_items)
    with serving(project.source / "images") as host:
        addresses = folder / "addresses.csv"
        urls = pl.format(f"http://{host}/{{}}.jpg", pl.int_range(pl.len()))
        items.select("item_id", image_url=urls).write_csv(addresses)
        made = (tuned, folder / "films", folder / "arrow", new_items, addresses, host)
        yield Inputs(project, folder, empty_sqlite, *made)


def _write_films(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "movies.dat").write_text("".join(f"{film}::Film {film} (1990)::Drama\n" for film in range(1, 2000)))
    rows = rng.integers(1, 2000, (20_000, 2))
    (folder / "ratings.dat").write_text("".join(f"{user}::{film}::4::97{user:07}\n" for user, film in rows))


def _write_arrow(project: Project, folder: Path) -> None:
    items = pl.read_csv(project.source / "items.csv").to_dicts()
    for row in items:
        row["image"] = {"bytes": (project.source / str(row["image"])).read_bytes(), "path": None}
    tables = {"items": items, "interactions": pl.read_csv(project.source / "interactions.csv").to_dicts()}
    for name, rows in tables.items():
        write_arrow(folder / name, rows)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve files; gives host and port."""

    def handler(*arguments: object) -> _Quiet:
        return _Quiet(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
