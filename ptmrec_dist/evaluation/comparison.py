"""One page that compares settings over their seeds: tables, and figures on where the differences come from.

A single HTML file that needs no network. What it shows is computed from finished runs alone, here and in `figures`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.buckets import Bucket, by_history, by_popularity
from ptmrec_dist.evaluation.figures import Curve, Figure, bars, bucket_lines, densities, learning_curves
from ptmrec_dist.evaluation.geometry import MAPPED, SAMPLE, Cloud, cloud, qualities, sample
from ptmrec_dist.evaluation.metrics import SELECT, title_of
from ptmrec_dist.evaluation.ranking import Ranked
from ptmrec_dist.evaluation.report import environment
from ptmrec_dist.evaluation.tables import Entry, Table

PARTS = {"test": "warm items", "cold_test": "cold items"}
_CUTOFF = 20
_SEEDS = (
    "Where there are several seeds, whiskers are one standard deviation to either side and small points single seeds."
)


@dataclass(frozen=True)
class SeedRun:
    """What a finished run left behind."""

    stage: int
    """1, or 2 where an encoder was trained along."""
    metrics: Mapping[str, Mapping[str, float]]
    """Part to metric to value."""
    history: Sequence[Mapping[str, Any]]
    """Its evaluations."""
    kept_epoch: int | None
    """Epoch whose weights it kept."""
    ranked: Mapping[str, Ranked]
    """Part of the test phase to its ranked positives."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Modality to the features that it ended with, float32 [I, d_m]; none for ID-only recommenders."""
    features_key: str = ""
    """Their fingerprint."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only."""

    name: str
    """What it is called."""
    group: str
    """The settings that it is drawn beside."""
    runs: tuple[SeedRun, ...]
    """A run a seed."""


@dataclass(frozen=True)
class Comparison:
    """What a page shows."""

    title: str
    """Heading."""
    settings: Sequence[Setting]
    """What is compared, the baseline first."""
    tables: Sequence[Table]
    """Tables, the most important first."""
    details: Sequence[Table] = ()
    """Further tables, folded away."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Heading to text that can be unfolded, such as the configuration."""


def group_name(recommender: str, modalities: str) -> str:
    """Name the settings that are drawn beside each other.

    Args:
        recommender: Recommender.
        modalities: What it sees: `both`, `image`, `text`, or `none` where it knows IDs only.

    Returns:
        The name.
    """
    seen = {"both": "image and text", "none": "IDs only"}.get(modalities, f"{modalities} only")
    return f"{recommender}, {seen}"


def write_comparison(path: Path, dataset: Dataset, page: Comparison) -> None:
    """Write the page.

    Args:
        path: The HTML file; it is replaced only by a whole one.
        dataset: The packed data set that all runs were made from.
        page: What to show.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in page.settings:
        groups.setdefault(setting.group, []).append(setting)
    draw = _Draw(dataset)
    html = (
        environment()
        .get_template("comparison.html")
        .render(
            page=page,
            dataset=dataset,
            seeds=max(len(setting.runs) for setting in page.settings),
            groups={name: draw.group(settings) for name, settings in groups.items()},
        )
    )
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(html, encoding="utf-8")
    os.replace(unfinished, path)


@dataclass(frozen=True)
class _Section:
    heading: str
    figures: list[Figure]
    table: Table | None = None


@dataclass(frozen=True)
class _Split:
    """A way of splitting Recall into buckets."""

    what: str
    of: str
    members: str
    even: str
    buckets: Callable[[Ranked], list[Bucket]]


class _Draw:
    """Figures of a group of settings, section by section."""

    def __init__(self, dataset: Dataset) -> None:
        self.train = dataset.interactions("train")
        self.popularity = np.bincount(self.train.items, minlength=dataset.num_items)
        self.history = np.bincount(self.train.users, minlength=dataset.num_users)
        cold = {part: len(dataset.cold_items(part)) for part in ("cold_validation", "cold_test")}
        candidates = {"test": dataset.num_items - sum(cold.values()), "cold_test": cold["cold_test"]}
        self.chance = {PARTS[part]: min(1.0, _CUTOFF / count) for part, count in candidates.items() if count}
        self.clouds: dict[tuple[str, str], Cloud | None] = {}
        self.qualities: dict[str, dict[str, float]] = {}

    def group(self, settings: Sequence[Setting]) -> list[_Section]:
        sections = [
            self._accuracy(settings),
            _curves(settings),
            self._by_popularity(settings),
            self._by_history(settings),
            self._qualities(settings),
            self._densities(settings),
        ]
        return [section for section in sections if section.figures]

    def _accuracy(self, settings: Sequence[Setting]) -> _Section:
        figures = []
        for metric in (f"recall@{_CUTOFF}", f"ndcg@{_CUTOFF}"):
            words = title_of(metric)
            parts = {
                label: {one.name: [run.metrics[part][metric] for run in one.runs] for one in having}
                for part, label in PARTS.items()
                if (having := [one for one in settings if all(part in run.metrics for run in one.runs)])
            }
            drawn = bars(parts, label=f"{words} on test", chance=self.chance if metric.startswith("recall") else None)
            reading = f"Longer is better. {_SEEDS} The dotted line is the Recall@20 that a random order reaches."
            figures.append(Figure(f"{words} on test", drawn, reading))
        return _Section("Accuracy", figures)

    def _by_popularity(self, settings: Sequence[Setting]) -> _Section:
        split = _Split(
            "item popularity",
            "item",
            "items",
            "held-out interactions",
            lambda ranked: by_popularity(ranked, self.popularity, _CUTOFF),
        )
        return _split(settings, ["test"], split)

    def _by_history(self, settings: Sequence[Setting]) -> _Section:
        split = _Split(
            "user history", "user", "users", "users", lambda ranked: by_history(ranked, self.history, _CUTOFF)
        )
        return _split(settings, list(PARTS), split)

    def _qualities(self, settings: Sequence[Setting]) -> _Section:
        found: dict[str, dict[str, list[float]]] = {}
        for one in settings:
            for run in one.runs:
                for name, value in self._qualities_of(run).items():
                    found.setdefault(name, {}).setdefault(one.name, []).append(value)
        readings = {
            "alignment": "Alignment is the mean squared distance of unit vectors, lower is closer: of the image and the text "
            "of one item, and, with taste, of two items that one user took in training (Wang and Isola 2020).",
            "uniformity": "Uniformity is the log of the mean of exp(-2 d²) over pairs of items, lower is more evenly spread "
            f"over the sphere (Wang and Isola 2020), over at most {SAMPLE:,} items.",
        }
        figures = []
        for kind, reading in readings.items():
            of_kind = {name: values for name, values in found.items() if name.startswith(kind)}
            if of_kind:
                drawn = bars(of_kind, label=kind, from_zero=False)
                figures.append(Figure(kind.capitalize(), drawn, reading))
        return _Section("Alignment and uniformity of the features", figures)

    def _qualities_of(self, run: SeedRun) -> dict[str, float]:
        if run.features_key not in self.qualities:
            self.qualities[run.features_key] = qualities(run.features, self.train)
        return self.qualities[run.features_key]

    def _densities(self, settings: Sequence[Setting]) -> _Section:
        maps = {one.name: self._clouds_of(one.runs[0]) for one in settings}
        maps = {name: clouds for name, clouds in maps.items() if clouds}
        highest = max((cloud.angle_densities.max() for clouds in maps.values() for cloud in clouds.values()), default=0)
        reading = (
            f"t-SNE of at most {MAPPED:,} items' features, the first seed's run; darker is denser (Gaussian kernel). "
            "Below, the density by direction from the centre: a flat curve at the dotted line is evenly spread, peaks are "
            "clusters. Distances between clusters and the map's orientation mean nothing."
        )
        figures = [Figure(name, densities(clouds, 1.08 * highest), reading) for name, clouds in maps.items()]
        return _Section("How the features lie", figures)

    def _clouds_of(self, run: SeedRun) -> dict[str, Cloud]:
        for modality, table in run.features.items():
            if (run.features_key, modality) not in self.clouds:
                self.clouds[run.features_key, modality] = cloud(table[sample(table, MAPPED)])
        found = {modality: self.clouds[run.features_key, modality] for modality in run.features}
        return {modality: one for modality, one in found.items() if one is not None}


def _curves(settings: Sequence[Setting]) -> _Section:
    figures = []
    words = {"validation": "warm items", "cold_validation": "cold items"}
    kinds = {1: "the recommender on its features", 2: "encoder and recommender"}
    for stage, trained in kinds.items():
        for part, label in words.items():
            key = f"{part}.{SELECT}"
            series = {
                one.name: [Curve.of(run.history, key, run.kept_epoch) for run in one.runs]
                for one in settings
                if all(run.stage == stage for run in one.runs)
            }
            series = {name: curves for name, curves in series.items() if all(curve.points for curve in curves)}
            if series:
                drawn = learning_curves(series, label=title_of(SELECT))
                reading = (
                    f"{title_of(SELECT)} on validation after each epoch, mean over seeds; the band is one standard deviation, "
                    "the ring what was kept. Epoch 0 is before any step."
                )
                figures.append(Figure(f"Training {trained}: {label}", drawn, reading))
    return _Section("Learning curves", figures)


def _split(settings: Sequence[Setting], parts: Sequence[str], split: _Split) -> _Section:
    heading, of = f"Recall by {split.what}", f"training interactions of the {split.of}"
    reading = (
        f"Each bucket holds about as many {split.even}; the further to "
        f"the right, the more training interactions the {split.of} has. The buckets' values, weighted with their shares in "
        "the table, add up to the Recall@20 of the part."
    )
    figures, table = [], Table(f"{heading}: what the buckets hold.", ["part", of, split.members, "held out", "share"])
    for part in parts:
        having = [one for one in settings if all(part in run.ranked for run in one.runs)]
        series = {one.name: [split.buckets(run.ranked[part]) for run in one.runs] for one in having}
        if series:
            drawn = bucket_lines(series, label="Recall@20", of=of)
            figures.append(Figure(f"{heading}, {PARTS[part]}", drawn, reading))
            for one in next(iter(series.values()))[0]:
                cells = [PARTS[part], one.label, f"{one.members:,}", f"{one.positives:,}", f"{one.fraction:.1%}"]
                table.rows.append([Entry(cell) for cell in cells])
    return _Section(heading, figures, table)
