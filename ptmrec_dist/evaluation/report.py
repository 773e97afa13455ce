"""The page of `ptmrec demo`: what was done, what came out, what users are recommended, lineage.

It reads run folders and the packed data set and nothing else: it needs neither the models nor a network.
"""

import base64
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ptmrec_dist.config import encoder_label
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.figures import styles_of
from ptmrec_dist.evaluation.metrics import SELECT, read_metrics, title_of
from ptmrec_dist.evaluation.outcomes import PARTS, SeedRun, Setting, accuracy, chance_levels, curves
from ptmrec_dist.evaluation.page import Change, Item, ItemRow, Page, Section, UserRows, gain, write_page
from ptmrec_dist.evaluation.tables import Entry, Table
from ptmrec_dist.files import read_json, read_json_lines

_THUMBNAIL = 160  # pixels
_RESULTS = (
    "For every user all warm items are ranked, and separately all cold ones. Recall@20 is the fraction of a user's held-out "
    "interactions whose items are among the first 20. Cold items were held out whole: they have no training interactions, so "
    "the model has only their pictures and texts to go by."
)


@dataclass(frozen=True)
class ShownRow:
    """A row of items to show for a user."""

    heading: str
    """What the items are."""
    items: Sequence[int]
    """Item indices, in order."""
    hits: frozenset[int] = frozenset()
    """Those to tick: items of the user's held-out interactions."""


@dataclass(frozen=True)
class ShownUser:
    """A user to show, with rows of items."""

    user_id: str
    """The user."""
    rows: tuple[ShownRow, ...]
    """Rows, top to bottom."""


@dataclass(frozen=True)
class Report:
    """What the page shows in addition to what it reads from the run folders."""

    title: str
    """Heading."""
    summary: Sequence[str]
    """Paragraphs on what was done."""
    runs: Mapping[str, Path]
    """Name to finished run folder, from the simplest to the one that matters most."""
    samples: Sequence[int] = ()
    """Items shown on top, for a look at the catalogue."""
    users: Sequence[ShownUser] = ()
    """Users to show."""
    users_note: str = ""
    """How those users were chosen, and what the rows and ticks mean."""
    commands: str = ""
    """Commands to continue with."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Phase to its wall time in seconds."""


@dataclass(frozen=True)
class _Run:
    name: str
    record: dict[str, Any]
    settings: str
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]


def write_report(path: Path, dataset: Dataset, report: Report) -> None:
    """Write the page, with all pictures inside it.

    Args:
        path: The HTML file; it is replaced only by a whole one.
        dataset: The packed data set that the runs were made from.
        report: What to show.

    Raises:
        UserError: A run folder that is not complete, or that was made from other data.
    """
    runs = [_read_run(name, folder, dataset) for name, folder in report.runs.items()]
    shown = {item for user in report.users for row in user.rows for item in row.items} | set(report.samples)
    items = _items(dataset, shown)
    settings = [
        Setting(run.name, "", (SeedRun(run.record["stage"], run.metrics, run.history, run.record.get("kept_epoch")),))
        for run in runs
    ]
    styles = styles_of(run.name for run in runs)
    sections = [
        Section(
            "Results",
            text=[_RESULTS],
            changes=_changes(runs),
            figures=accuracy(settings, [SELECT], styles, chance_levels(dataset)),
            tables=[_table(runs)],
        ),
        Section("Learning curves", figures=curves(settings, styles)),
    ]
    if report.users:
        users = [_user(user, items) for user in report.users]
        sections.append(Section("Recommendations", text=[report.users_note], users=users))
    if report.commands:
        sections.append(Section("Your own data", listing=report.commands))
    texts = {f"Settings of {run.name}": run.settings for run in runs}
    sections.append(Section("Facts", facts=_facts(dataset, runs, report.seconds), texts=texts))
    pictures = [items[item] for item in report.samples]
    write_page(path, Page(report.title, report.summary, sections, pictures))


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


def _changes(runs: list[_Run]) -> list[Change]:
    """The selecting metric of the last run beside that of the first."""
    first, last = runs[0], runs[-1]
    return [
        Change(
            f"{title_of(SELECT)} on {label}",
            first.metrics[part][SELECT],
            last.metrics[part][SELECT],
            f"from {first.name} to {last.name}",
        )
        for part, label in PARTS.items()
        if first is not last and part in first.metrics and part in last.metrics
    ]


def _table(runs: list[_Run]) -> Table:
    """A row for each part and metric: the value of every run, the best one, the change from the first run to the last."""
    first, last = runs[0], runs[-1]
    several = len(runs) > 1
    change = f" Change: {last.name} against {first.name}." if several else ""
    table = Table(
        f"Test. Bold: the best.{change} One seed and one split: neither the spread over seeds nor that over splits is known.",
        ["items", "metric", *(["change"] if several else []), *(run.name for run in runs)],
        keys=2,
    )
    for part, label in PARTS.items():
        for metric in last.metrics.get(part, {}):
            values = [run.metrics.get(part, {}).get(metric) for run in runs]  # an older version measured fewer metrics
            best = max(value for value in values if value is not None)
            changed = [Entry(gain(values[-1] or 0.0, values[0] or 0.0))] if several else []
            entries = [Entry("" if value is None else f"{value:.4f}", best=value == best) for value in values]
            table.rows.append([Entry(label), Entry(metric), *changed, *entries])
    return table


def _facts(dataset: Dataset, runs: list[_Run], seconds: Mapping[str, float]) -> dict[str, str]:
    counts = ", ".join(f"{part} {count:,}" for part, count in dataset.manifest.interactions.items())
    facts = {
        "Users, items": f"{dataset.num_users:,}, {dataset.num_items:,}",
        "Interactions": counts,
        "Split": f"{dataset.manifest.split}, seed {dataset.manifest.seed}, {dataset.manifest.core}-core",
        "Data": dataset.fingerprint[:16],
    }
    encoder = runs[-1].record["encoder"]
    if encoder is not None:
        facts["Encoder"] = f"{encoder_label(encoder)}, {encoder['fingerprint'][:16]}"
    facts |= {f"Run “{run.name}”": run.record["fingerprint"][:16] for run in runs}
    if seconds:
        phases = "; ".join(f"{phase} {duration:.0f} s" for phase, duration in seconds.items())
        facts["Wall time"] = f"{phases}; in all {sum(seconds.values()):.0f} s"
    return facts


def _user(user: ShownUser, items: Mapping[int, Item]) -> UserRows:
    return UserRows(
        user.user_id,
        [ItemRow(row.heading, [replace(items[item], hit=item in row.hits) for item in row.items]) for row in user.rows],
    )


def _items(dataset: Dataset, shown: Iterable[int]) -> dict[int, Item]:
    shown = list(shown)
    cold = {int(item) for part in ("cold_validation", "cold_test") for item in dataset.cold_items(part)}
    pictures = _pictures(dataset, shown) if "image" in dataset.manifest.modalities else {}
    return {item: Item(dataset.titles[item], pictures.get(item, ""), item in cold) for item in shown}


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
