"""Sums close on every path: the rows that a command reads are those it writes and those it leaves out, each for a reason."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist import cli
from ptmrec_dist.data.dataset import Dataset
from tests.conftest import Project
from tests.kills.inputs import serving

NO_ROWS = {
    **dict.fromkeys(
        ("stage1", "stage2", "refit", "joint", "contrastive", "evaluate"), "reads a packed data set, all of it"
    ),
    **dict.fromkeys(("experiment", "sweep", "report", "export", "register", "demo"), "reads runs or runs commands"),
    **dict.fromkeys(("promote", "rollback", "delete", "models", "serve"), "reads the registry"),
}
"""Commands that read no rows of the user's, and why."""


@dataclass(frozen=True)
class Sum:
    """Rows as a command counts them, and as the test does."""

    read: int
    """Rows read."""
    written: int
    """Rows written."""
    left_out: tuple[int, ...]
    """Rows left out for each reason."""
    in_input: int
    """Rows of the input."""
    in_output: int
    """Rows of the output."""


@dataclass(frozen=True)
class Place:
    """Where commands read and write."""

    project: Project
    """A packed data set, with features and a run."""
    folder: Path
    """Folder of the test."""
    printed: Callable[[], str]
    """What was printed since the last call."""

    def run(self, *words: object) -> str:
        """Run a command; give what it printed."""
        assert cli.main([str(word) for word in words]) == 0
        return self.printed()


def _items(place: Place) -> pl.DataFrame:
    """Items, the last of which are bad: an id twice, no text, an image that is absent."""
    items = pl.read_csv(place.project.source / "items.csv").with_columns(pl.col("item_id").cast(pl.String))
    bad = items.head(3).with_columns(
        item_id=pl.Series(["i5", "x1", "x2"]),
        text=pl.Series(["a", "", "b"]),
        image=pl.Series(["images/0.jpg"] * 2 + ["no.jpg"]),
    )
    pl.concat([items, bad]).write_csv(place.folder / "items.csv")
    return items


def _packed(place: Place) -> list[Sum]:
    _items(place)
    log = pl.read_csv(place.project.source / "interactions.csv")
    bad = pl.DataFrame({"user_id": ["u1", "u2"], "item_id": ["nothing", "x1"], "timestamp": [1, 2]})
    rows = pl.concat([log, bad])
    rows.write_csv(place.folder / "log.csv")
    tables = ("--items", place.folder / "items.csv", "--images", place.project.source)
    place.run(
        "pack", *tables, "--interactions", place.folder / "log.csv", "--out", place.folder / "out", "--workers", 1
    )
    dataset = Dataset(place.folder / "out")
    report = dataset.manifest.report
    written = {
        "items": dataset.num_items,
        "interactions": sum(len(dataset.interactions(p).items) for p in dataset.parts),
    }
    read = {"items": 63, "interactions": rows.height}
    return [
        Sum(
            one["read"],
            one["kept"],
            tuple(gone["count"] for gone in one["dropped"].values()),
            read[name],
            written[name],
        )
        for name, one in report.items()
    ]


def _imported(place: Place) -> list[Sum]:
    (place.folder / "source").mkdir()
    (place.folder / "source/movies.dat").write_text("1::A (1990)::Drama\n2::B (1991)::Drama\nno film\n")
    (place.folder / "source/ratings.dat").write_text("1::1::4::97\n2::2::5::98\n\n3::1\n")
    place.run("import", "movielens", "--source", place.folder / "source", "--out", place.folder / "out")
    report = json.loads((place.folder / "out/import.json").read_text())
    lines = {"items": 3, "interactions": 4}
    return [
        Sum(
            report[name]["read"],
            report[name]["written"],
            tuple(report[name]["left_out"].values()),
            lines[name],
            pl.read_parquet(place.folder / f"out/{name}.parquet").height,
        )
        for name in lines
    ]


def _downloaded(place: Place) -> list[Sum]:
    with serving(place.project.source / "images") as host:
        urls = [f"http://{host}/{name}" for name in ("0.jpg", "1.jpg", "gone.jpg")]
        urls += ["", "ftp://x/y.jpg", "http://elsewhere.example/1.jpg"]
        rows = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(urls))], "image_url": urls})
        rows.write_csv(place.folder / "urls.csv")
        words = ("--items", place.folder / "urls.csv", "--hosts", host, "--out", place.folder / "out")
        printed = place.run("download", *words)
    line = next(line for line in printed.splitlines() if "rows read" in line)
    read, *left_out, written = _numbers(line)
    return [Sum(read, written, tuple(left_out), len(urls), len(list((place.folder / "out").glob("*"))))]


def _numbers(line: str) -> list[int]:
    """The counts of a summary, without what is in brackets."""
    return [int(number) for number in re.findall(r"(?:^|, )(\d+) ", re.sub(r"\([^()]*\)", "", line))]


def _extracted(place: Place) -> list[Sum]:
    ids = [*Dataset(place.project.shards).item_ids, "elsewhere", "nowhere"]
    rows = np.random.default_rng(0).random((len(ids), 4))
    pl.DataFrame({"item_id": ids, "vector": rows.tolist()}).write_parquet(place.folder / "text.parquet")
    words = (
        "--shards",
        place.project.shards,
        "--text_npy",
        place.folder / "text.parquet",
        "--out",
        place.folder / "out",
    )
    printed = place.run("features", *words)
    read, written, left_out = map(int, re.findall(r"(\d+) (?:rows|written|left out)", printed))
    return [Sum(read, written, (left_out,), len(ids), len(np.load(place.folder / "out/text.npy")))]


def _merged(place: Place) -> list[Sum]:
    other, first = place.folder / "other", Dataset(place.project.shards)
    items = pl.read_csv(place.project.source / "items.csv").with_columns(pl.col("text") + ", used")
    items.write_csv(place.folder / "used.csv")
    tables = (
        "--items",
        place.folder / "used.csv",
        "--images",
        place.project.source,
        "--split",
        "cold_items",
        "--core",
        2,
    )
    log = ("--interactions", place.project.source / "interactions.csv")
    place.run("pack", *tables, *log, "--workers", 1, "--out", other)
    printed = place.run("merge", place.project.shards, other, "--out", place.folder / "out")
    *sources, total = [[int(number) for number in re.findall(r"(\d+) [a-z_]+", line)] for line in printed.splitlines()]
    parts = Dataset(place.folder / "out"), Dataset(other)
    assert [sum(numbers) for numbers in zip(*sources)] == total[: len(sources[0])]
    rows = [sum(len(data.interactions(part).items) for part in data.parts) for data in (first, *parts)]
    read, written = (sum(sum(one[2:]) for one in sources), sum(total[2 : len(sources[0])]))
    return [Sum(read, written, (), rows[0] + rows[2], rows[1])]


def _examined(place: Place) -> list[Sum]:
    _items(place)
    shutil.copy(place.project.source / "interactions.csv", place.folder / "log.csv")
    words = ("--items", place.folder / "items.csv", "--interactions", place.folder / "log.csv")
    cli.main(["doctor", *map(str, words), "--images", str(place.project.source), "--json"])
    facts = json.loads(place.printed())["facts"]
    counted = {fact["name"]: _numbers(fact["value"]) for fact in facts if fact["name"] in ("items", "interactions")}
    rows = {"items": 63, "interactions": pl.read_csv(place.folder / "log.csv").height}
    return [Sum(read, kept, tuple(gone), rows[name], kept) for name, (read, *gone, kept) in counted.items()]


def _with_a_model(place: Place) -> None:
    place.run("register", "--run", place.project.stage1, "--name", "shown", "--alias", "champion")


def _recommended(place: Place) -> list[Sum]:
    _with_a_model(place)
    users = place.folder / "users.txt"
    users.write_text("u1\n\nu2\nsomebody\n\n")
    words = ("--model", "models:/shown@champion", "--users_file", users, "--out", place.folder / "out.parquet")
    printed = place.run("recommend", *words)
    read, empty = map(int, re.findall(r"(\d+) (?:lines|left out)", printed))
    written = int(re.findall(r"for (\d+) users", printed)[0])
    assert "1 of these users are unknown to the model" in printed
    return [Sum(read, written, (empty,), 5, pl.read_parquet(place.folder / "out.parquet")["user_id"].n_unique())]


def _added(place: Place) -> list[Sum]:
    _with_a_model(place)
    rows = _items(place).head(4).with_columns(item_id=pl.Series(["new1", "new2", "i5", "new1"]))
    rows = pl.concat([rows, rows.head(1).with_columns(item_id=pl.lit("new3"), image=pl.lit("no.jpg"))])
    rows.write_csv(place.folder / "new.csv")
    words = ("--items", place.folder / "new.csv", "--images", place.project.source)
    printed = place.run("add-items", "--model", "models:/shown@champion", *words)
    read, *left_out, written = _numbers(next(line for line in printed.splitlines() if " items read" in line))
    added = int(re.findall(r"with (\d+) more items", printed)[0])
    return [Sum(read, written, tuple(left_out), 5, added)]


COMMANDS: dict[str, Callable[[Place], list[Sum]]] = {
    "pack": _packed,
    "import": _imported,
    "download": _downloaded,
    "features": _extracted,
    "merge": _merged,
    "doctor": _examined,
    "recommend": _recommended,
    "add-items": _added,
}


def test_every_command_that_reads_rows_is_counted() -> None:
    assert cli.COMMANDS.keys() == COMMANDS.keys() | NO_ROWS.keys()


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("recommend", "add-items") else name for name in COMMANDS],
)
def test_rows_read_are_rows_written_and_left_out_by_reason(
    command: str,
    tiny_project: Project,
    empty_sqlite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(empty_sqlite, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    capsys.readouterr()
    for found in COMMANDS[command](Place(tiny_project, tmp_path, lambda: capsys.readouterr().out)):
        assert found.read == found.in_input
        assert found.written == found.in_output
        assert found.read == found.written + sum(found.left_out)
        assert all(count > 0 for count in found.left_out)
