"""One page about finished runs: curves, comparison, what single people are recommended, lineage. A single HTML file.

The page reads run folders and the packed data set and nothing else: it needs neither the models nor a network.
"""

import base64
import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.figures import Curve, bars, learning_curves
from ptmrec_dist.evaluation.metrics import SELECT, read_metrics, title_of
from ptmrec_dist.files import read_json, read_json_lines

_TEMPLATES = Path(__file__).with_name("templates")
_THUMBNAIL = 160  # pixels
_PARTS = {"test": "warm items", "cold_test": "cold items"}
_CUTOFF = 20


@dataclass(frozen=True)
class Shelf:
    """A row of items under a heading."""

    heading: str
    """What the items are."""
    items: Sequence[int]
    """Item indices, in order."""
    hits: frozenset[int] = frozenset()
    """Those to tick: what the person did take."""


@dataclass(frozen=True)
class Person:
    """A user and the rows of items shown for them."""

    user_id: str
    """The user."""
    shelves: tuple[Shelf, ...]
    """Rows, top to bottom."""


@dataclass(frozen=True)
class Page:
    """What the page says beside what it reads from the run folders."""

    title: str
    """Heading."""
    summary: Sequence[str]
    """Paragraphs in plain words on what was done."""
    runs: Mapping[str, Path]
    """Name to finished run folder, from the simplest to the one that matters most."""
    samples: Sequence[int] = ()
    """Items shown on top, for a look at the catalogue."""
    people: Sequence[Person] = ()
    """People to show."""
    people_note: str = ""
    """How those people were chosen, and what the rows and ticks mean."""
    commands: str = ""
    """Commands that go on from here."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Phase to its wall time in seconds."""


@dataclass(frozen=True)
class _Run:
    name: str
    record: dict[str, Any]
    settings: str
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]


def write_report(path: Path, dataset: Dataset, page: Page) -> None:
    """Write the page, with all pictures inside it.

    Args:
        path: The HTML file; it is replaced only by a whole one.
        dataset: The packed data set that the runs were made from.
        page: What to show.

    Raises:
        UserError: A run folder that is not complete, or that was made from other data.
    """
    runs = [_read_run(name, folder, dataset) for name, folder in page.runs.items()]
    shown = {item for person in page.people for shelf in person.shelves for item in shelf.items} | set(page.samples)
    html = (
        environment()
        .get_template("report.html")
        .render(
            page=page,
            dataset=dataset,
            pictures=_pictures(dataset, shown) if "image" in dataset.manifest.modalities else {},
            cold={int(item) for part in ("cold_validation", "cold_test") for item in dataset.cold_items(part)},
            curves=_curves(runs),
            bars=bars(_values(runs, SELECT), label=title_of(SELECT), chance=_chance(dataset)),
            table=_table(runs),
            headline=SELECT,
            runs=runs,
            facts=_facts(dataset, runs),
        )
    )
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(html, encoding="utf-8")
    os.replace(unfinished, path)


def environment() -> Environment:
    """Say how pages are made: whatever comes from data is escaped, and a name that is missing is an error.

    Returns:
        The templates of this folder.
    """
    templates = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    templates.filters["percent"] = lambda share: f"{share:+.0%}".replace("-", "\N{MINUS SIGN}")
    return templates


def _read_run(name: str, folder: Path, dataset: Dataset) -> _Run:
    if not (folder / "metrics.json").is_file():
        raise UserError(f"run: {folder} is not a finished run (no metrics.json); train it to its end first")
    record = read_json(folder / "run.json", "run")
    if record["data"]["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"run: {folder} was made from data {record['data']['fingerprint'][:12]}, but {dataset.folder} is "
            f"{dataset.fingerprint[:12]}; give the data set that it was made from"
        )
    return _Run(
        name,
        record,
        (folder / "config.yaml").read_text(),
        read_metrics(folder),
        read_json_lines(folder / "history.jsonl", "run"),
    )


def _curves(runs: list[_Run]) -> list[tuple[str, str]]:
    """A plot for each stage: the selecting metric on cold items where stage 2 has them, else on warm ones."""
    plots = []
    for stage in (1, 2):
        of_stage = [run for run in reversed(runs) if run.record["stage"] == stage and run.history]
        if not of_stage:
            continue
        part = "cold_validation" if stage == 2 and "cold_validation" in of_stage[0].metrics else "validation"
        series = {
            run.name: [Curve.of(run.history, f"{part}.{SELECT}", run.record.get("kept_epoch"))] for run in of_stage
        }
        words = "held-out cold items" if part == "cold_validation" else "held-out interactions"
        title = f"Stage {stage}: {title_of(SELECT)} on validation, {words}"
        plots.append((title, learning_curves(series, label=title_of(SELECT))))
    return plots


def _values(runs: list[_Run], metric: str) -> dict[str, dict[str, list[float]]]:
    parts = [part for part in _PARTS if all(part in run.metrics for run in runs)]
    return {_PARTS[part]: {run.name: [run.metrics[part][metric]] for run in runs} for part in parts}


def _chance(dataset: Dataset) -> dict[str, float]:
    """Recall@20 of a random order: the share of the candidates that 20 are."""
    cold = {part: len(dataset.cold_items(part)) for part in ("cold_validation", "cold_test")}
    candidates = {"test": dataset.num_items - sum(cold.values()), "cold_test": cold["cold_test"]}
    return {_PARTS[part]: min(1.0, _CUTOFF / count) for part, count in candidates.items() if count}


def _table(runs: list[_Run]) -> list[dict[str, Any]]:
    """A row for each part and metric: every run's value, the best one, the gain of the last run on the one before."""
    rows = []
    for part, words in _PARTS.items():
        for order, metric in enumerate(runs[-1].metrics.get(part, {})):
            values = [run.metrics[part][metric] for run in runs]
            before = values[-2] if len(values) > 1 else 0.0
            gain = values[-1] / before - 1 if before else None
            row = {"part": words, "first": order == 0, "metric": metric, "values": values, "best": max(values)}
            rows.append(row | {"gain": gain})
    return rows


def _facts(dataset: Dataset, runs: list[_Run]) -> dict[str, str]:
    counts = ", ".join(f"{part} {count:,}" for part, count in dataset.manifest.interactions.items())
    facts = {
        "Users, items": f"{dataset.num_users:,}, {dataset.num_items:,}",
        "Interactions": counts,
        "Split": f"{dataset.manifest.split}, seed {dataset.manifest.seed}, {dataset.manifest.core}-core",
        "Data": dataset.fingerprint[:16],
    }
    encoder = runs[-1].record["encoder"]
    if encoder is not None:
        facts["Encoder"] = f"{Path(encoder['model']).name}, {encoder['fingerprint'][:16]}"
    return facts | {f"Run “{run.name}”": run.record["fingerprint"][:16] for run in runs}


def _pictures(dataset: Dataset, items: Iterable[int]) -> dict[int, str]:
    """Item to a thumbnail as a data URI, read from the shards."""
    by_shard: dict[int, dict[str, int]] = defaultdict(dict)
    for item in items:
        by_shard[int(dataset.item_shards[item])][f"{item:09d}.jpg"] = item
    found = {}
    for shard, path in enumerate(dataset.shard_paths()):
        with tarfile.open(path) as tar:
            for member in tar if shard in by_shard else ():
                file = tar.extractfile(member) if member.name in by_shard[shard] else None
                if file is not None:
                    found[by_shard[shard][member.name]] = _thumbnail(file.read())
    return found


def _thumbnail(jpeg: bytes) -> str:
    with Image.open(io.BytesIO(jpeg)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
