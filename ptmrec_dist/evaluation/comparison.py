"""One page that compares settings over their seeds: tables, and figures on where the differences come from.

What it shows is computed from finished runs alone, here and in `figures`; `page` builds it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.buckets import Bucket, by_history, by_popularity
from ptmrec_dist.evaluation.figures import Figure, Styles, bars, bucket_lines, densities, styles_of
from ptmrec_dist.evaluation.geometry import MAPPED, SAMPLE, Cloud, cloud, qualities, sample
from ptmrec_dist.evaluation.outcomes import CUTOFF, SeedRun, Setting, accuracy, chance_levels, curves, parts_of
from ptmrec_dist.evaluation.page import Page, Section, write_page
from ptmrec_dist.evaluation.ranking import Ranked
from ptmrec_dist.evaluation.tables import Entry, Table


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
    """Further tables, folded."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Heading to text that can be unfolded, such as the configuration."""
    phase: str = "test"
    """Phase that is compared: `test` or `validation`."""
    splits: int = 1
    """Splits of the data that the runs are of."""


def group_name(recommender: str, modalities: str) -> str:
    """Name the settings that share figures.

    Args:
        recommender: Recommender.
        modalities: Its modalities: `both`, `image`, `text`, or `none` for a recommender of IDs only.

    Returns:
        The name.
    """
    seen = {"both": "image and text", "none": "IDs only"}.get(modalities, f"{modalities} only")
    return f"{recommender}, {seen}"


def write_comparison(path: Path, dataset: Dataset, page: Comparison) -> None:
    """Write the page.

    Args:
        path: The HTML file; it is replaced only by a whole one.
        dataset: The packed data set that the runs were made from; of several splits the first.
        page: What to show.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in page.settings:
        groups.setdefault(setting.group, []).append(setting)
    figures = _Figures(dataset, page.phase, styles_of(setting.name for setting in page.settings))
    tables = Section("Tables", tables=page.tables, folded=page.details)
    of_groups = [Section(name, sections=figures.of_group(settings)) for name, settings in groups.items()]
    facts = Section("Facts", facts={"Data": dataset.fingerprint[:16]}, texts=page.texts)
    write_page(path, Page(page.title, _summary(page, dataset), [tables, *of_groups, facts]))


def _summary(page: Comparison, dataset: Dataset) -> list[str]:
    seeds = sorted({len(setting.runs) // page.splits for setting in page.settings})
    of_each = "1 seed each" if seeds == [1] else f"{' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds each"
    over = f"{page.splits} splits, " if page.splits > 1 else ""
    count = f"{len(page.settings)} setting{'s' * (len(page.settings) > 1)}"
    parts = ", ".join(f"{part} {number:,}" for part, number in dataset.manifest.interactions.items())
    first = "the first split; " if page.splits > 1 else ""
    ranked = "items are ranked"
    if dataset.manifest.split == "cold_items":
        ranked = "warm items are ranked, and separately all cold items, which have no training interactions"
    notes = [
        "Figures of items, users and features are of the first split; accuracy and learning curves are of all splits."
    ]
    return [
        f"{count}, {over}{of_each}, on {dataset.num_items:,} items and {dataset.num_users:,} users "
        f"({dataset.manifest.split} split; interactions: {first}{parts}).",
        f"Full ranking: for every user all {ranked}. A setting has the same colour in all figures.",
        *(notes if page.splits > 1 else []),
    ]


@dataclass(frozen=True)
class _Split:
    """A way of splitting Recall into buckets."""

    what: str
    of: str
    members: str
    even: str
    buckets: Callable[[Ranked], list[Bucket]]


class _Figures:
    """Figures of a group of settings, section by section."""

    def __init__(self, dataset: Dataset, phase: str, styles: Styles) -> None:
        self.data, self.phase = dataset.fingerprint, phase
        self.train = dataset.interactions("train")
        self.popularity = np.bincount(self.train.items, minlength=dataset.num_items)
        self.history = np.bincount(self.train.users, minlength=dataset.num_users)
        self.chance = chance_levels(dataset, phase)
        self.styles = styles
        self.clouds: dict[tuple[str, str], Cloud | None] = {}
        self.qualities: dict[str, dict[str, float]] = {}

    def of_group(self, settings: Sequence[Setting]) -> list[Section]:
        metrics = (f"recall@{CUTOFF}", f"ndcg@{CUTOFF}")
        of_data = [replace(one, runs=tuple(run for run in one.runs if run.data == self.data)) for one in settings]
        sections = [
            Section("Accuracy", figures=accuracy(settings, metrics, self.styles, self.chance, self.phase)),
            Section("Learning curves", figures=curves(settings, self.styles)),
            self._by_popularity(of_data),
            self._by_history(of_data),
            self._qualities(of_data),
            self._densities(of_data),
        ]
        return [section for section in sections if section.figures]

    def _by_popularity(self, settings: Sequence[Setting]) -> Section:
        split = _Split(
            "item popularity",
            "item",
            "items",
            "held-out interactions",
            lambda ranked: by_popularity(ranked, self.popularity, CUTOFF),
        )
        return _split(settings, list(parts_of(self.phase).items())[:1], split, self.styles)

    def _by_history(self, settings: Sequence[Setting]) -> Section:
        split = _Split(
            "user history", "user", "users", "users", lambda ranked: by_history(ranked, self.history, CUTOFF)
        )
        return _split(settings, list(parts_of(self.phase).items()), split, self.styles)

    def _qualities(self, settings: Sequence[Setting]) -> Section:
        found: dict[str, dict[str, list[float]]] = {}
        for one in settings:
            for run in one.runs:
                for name, value in self._qualities_of(run).items():
                    found.setdefault(name, {}).setdefault(one.name, []).append(value)
        readings = {
            "alignment": "Alignment is the mean squared distance of unit vectors, lower is closer: of the image and the text "
            "of one item, and, with taste, of two items of one user's training interactions (Wang and Isola 2020).",
            "uniformity": "Uniformity is the log of the mean of exp(-2 d²) over pairs of items, lower is more evenly spread "
            f"over the sphere (Wang and Isola 2020), over at most {SAMPLE:,} items.",
        }
        figures = []
        for kind, reading in readings.items():
            of_kind = {name: values for name, values in found.items() if name.startswith(kind)}
            if of_kind:
                svg = bars(of_kind, styles=self.styles, label=kind, from_zero=False)
                figures.append(Figure(kind.capitalize(), svg, reading))
        return Section("Alignment and uniformity of the features", figures=figures)

    def _qualities_of(self, run: SeedRun) -> dict[str, float]:
        if run.features_key not in self.qualities:
            self.qualities[run.features_key] = qualities(run.features, self.train)
        return self.qualities[run.features_key]

    def _densities(self, settings: Sequence[Setting]) -> Section:
        maps = {one.name: self._clouds_of(one.runs[0]) for one in settings}
        maps = {name: clouds for name, clouds in maps.items() if clouds}
        highest = max((cloud.angle_densities.max() for clouds in maps.values() for cloud in clouds.values()), default=0)
        reading = (
            f"t-SNE of at most {MAPPED:,} items' features, the first seed's run; darker is denser (Gaussian kernel). "
            "Below, the density by direction from the centre: a flat curve at the dotted line is evenly spread, peaks are "
            "clusters. Distances between clusters and the map's orientation mean nothing."
        )
        figures = [
            Figure(name, densities(clouds, 1.08 * highest, colour=self.styles[name]["color"]), reading)
            for name, clouds in maps.items()
        ]
        return Section("Distribution of the features", figures=figures)

    def _clouds_of(self, run: SeedRun) -> dict[str, Cloud]:
        for modality, table in run.features.items():
            if (run.features_key, modality) not in self.clouds:
                self.clouds[run.features_key, modality] = cloud(table[sample(table, MAPPED)])
        found = {modality: self.clouds[run.features_key, modality] for modality in run.features}
        return {modality: one for modality, one in found.items() if one is not None}


def _split(settings: Sequence[Setting], parts: Sequence[tuple[str, str]], split: _Split, styles: Styles) -> Section:
    heading, of = f"Recall by {split.what}", f"training interactions of the {split.of}"
    reading = (
        f"Each bucket holds about as many {split.even}; the further to "
        f"the right, the more training interactions the {split.of} has. The buckets' values, weighted with their fractions in "
        "the table, add up to the Recall@20 of the part."
    )
    heads = ["part", of, split.members, "held-out interactions", "fraction"]
    figures, table = [], Table(f"{heading}: what the buckets hold.", heads, keys=2)
    for part, label in parts:
        having = [one for one in settings if all(part in run.ranked for run in one.runs)]
        series = {one.name: [split.buckets(run.ranked[part]) for run in one.runs] for one in having}
        if series:
            svg = bucket_lines(series, styles=styles, label="Recall@20", of=of)
            figures.append(Figure(f"{heading}, {label}", svg, reading))
            for one in next(iter(series.values()))[0]:
                cells = [label, one.label, f"{one.members:,}", f"{one.positives:,}", f"{one.fraction:.1%}"]
                table.rows.append([Entry(cell) for cell in cells])
    return Section(heading, figures=figures, folded=[table])
