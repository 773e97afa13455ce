"""Finished runs, setting by setting, and the figures of their metrics: what every page shows, however it was made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.evaluation.figures import Curve, Figure, Styles, bars, learning_curves
from ptmrec_dist.evaluation.metrics import SELECT, title_of
from ptmrec_dist.evaluation.ranking import Ranked

CUTOFF = 20
"""K of the figures on Recall."""
_SEEDS = (
    "Where there are several runs, over seeds or splits, whiskers are one standard deviation to either side and small points "
    "single runs."
)


def parts_of(phase: str, sources: Iterable[str] = ()) -> dict[str, str]:
    """Name the parts of a phase.

    Args:
        phase: `validation` or `test`.
        sources: Names of the sources of a merged data set.

    Returns:
        Part to what pages call it; those of each source last.
    """
    parts = {phase: "warm items", f"cold_{phase}": "cold items"}
    return parts | {f"{part}.{source}": f"{label} of {source}" for source in sources for part, label in parts.items()}


PARTS = parts_of("test")
"""Part of the test phase to what pages call it."""


@dataclass(frozen=True)
class SeedRun:
    """What a finished run left behind."""

    stage: int
    """1, or 2 where an encoder was trained too."""
    metrics: Mapping[str, Mapping[str, float]]
    """Part to metric to value."""
    history: Sequence[Mapping[str, Any]]
    """Its evaluations."""
    kept_epoch: int | None
    """Epoch whose weights it kept."""
    ranked: Mapping[str, Ranked] = field(default_factory=dict, repr=False)
    """Part of the phase that is compared to its ranked positives."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Modality to the features that it ended with, float32 [I, d_m]; none for ID-only recommenders."""
    features_key: str = ""
    """Their fingerprint."""
    data: str = ""
    """Fingerprint of the packed data set."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed or split only."""

    name: str
    """What it is called."""
    group: str
    """The settings that share figures with it."""
    runs: tuple[SeedRun, ...]
    """A run for each seed and split."""


def chance_levels(dataset: Dataset, phase: str = "test") -> dict[str, float]:
    """Compute the Recall@20 of a random order: 20 over the number of candidates; none of a merged data set, which has several.

    Args:
        dataset: Packed data set.
        phase: `validation` or `test`.

    Returns:
        Label of the part (a value of `PARTS`) to its chance level.
    """
    if dataset.sources:
        return {}
    cold = {part: len(dataset.cold_items(part)) for part in ("cold_validation", "cold_test")}
    candidates = {phase: dataset.num_items - sum(cold.values()), f"cold_{phase}": cold[f"cold_{phase}"]}
    names = parts_of(phase)
    return {names[part]: min(1.0, CUTOFF / count) for part, count in candidates.items() if count}


def accuracy(
    settings: Sequence[Setting],
    metrics: Sequence[str],
    styles: Styles,
    chance: Mapping[str, float],
    phase: str = "test",
) -> list[Figure]:
    """Draw metrics of a phase.

    Args:
        settings: Settings.
        metrics: Metrics, a figure each.
        styles: Name of a setting to its style.
        chance: What `chance_levels` gave.
        phase: `validation` or `test`.

    Returns:
        The figures.
    """
    figures = []
    for metric in metrics:
        title, is_recall = f"{title_of(metric)} on {phase}", metric == f"recall@{CUTOFF}"
        parts = {
            label: {one.name: [run.metrics[part][metric] for run in one.runs] for one in having}
            for part, label in parts_of(phase).items()
            if (having := [one for one in settings if all(part in run.metrics for run in one.runs)])
        }
        svg = bars(parts, styles=styles, label=title, chance=chance if is_recall else None)
        reading = f"Longer is better. {_SEEDS} The dotted line of Recall@{CUTOFF} is the chance level."
        figures.append(Figure(title, svg, reading))
    return figures


def curves(settings: Sequence[Setting], styles: Styles) -> list[Figure]:
    """Draw the selecting metric over the epochs, a figure for each kind of training and part of the validation phase.

    Args:
        settings: Settings.
        styles: Name of a setting to its style.

    Returns:
        The figures.
    """
    figures = []
    reading = (
        f"{title_of(SELECT)} on validation at each epoch that was evaluated: the mean over the seeds that reached it; the "
        "band is one standard deviation, a ring marks the epoch that a run kept, for each seed by itself. Epoch 0 is before "
        "any step."
    )
    for stage, trained in {1: "the recommender on its features", 2: "encoder and recommender"}.items():
        for part, label in {"validation": "warm items", "cold_validation": "cold items"}.items():
            series = {
                one.name: [Curve.of(run.history, f"{part}.{SELECT}", run.kept_epoch) for run in one.runs]
                for one in settings
                if all(run.stage == stage for run in one.runs)
            }
            series = {name: found for name, found in series.items() if all(curve.points for curve in found)}
            if series:
                svg = learning_curves(series, styles=styles, label=title_of(SELECT))
                figures.append(Figure(f"Training {trained}: {label}", svg, reading))
    return figures
