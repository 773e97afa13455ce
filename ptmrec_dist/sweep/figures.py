"""Figures of a sweep: its trials as lines through their settings, and which settings mattered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution

from ptmrec_dist.evaluation.figures.style import wrapped
from ptmrec_dist.files import replacing
from ptmrec_dist.sweep.space import Point, Space
from ptmrec_dist.sweep.trials import Trial

_COLOUR, _GREY = "#0072b2", "#8a94a0"
_COLOURS = colormaps["cividis_r"]  # in grey, and to the colour-blind: the darker the better
_WIDTH = 16  # characters of a name that fit beside the next axis


def plot(
    space: Space, trials: Sequence[Trial], read: Callable[[Point], Point], metric: str, folder: Path
) -> list[Path]:
    """Plot a sweep as `parallel_coordinates.png` and, where complete trials differ, `importance.png`.

    Args:
        space: What was searched.
        trials: Trials with a value, complete or stopped early.
        read: Leaves out what the trial at a point does not read.
        metric: Name of the value.
        folder: Folder of the figures.

    Returns:
        The files written.
    """
    written = [_save(_parallel_coordinates(space, trials, read, metric), folder / "parallel_coordinates.png")]
    fractions = importances(space, trials)
    if fractions:
        written.append(_save(_importance(fractions, trials, metric), folder / "importance.png"))
    else:
        complete = len(_complete(trials))
        print(f"importance.png: not plotted, got {_trials(complete)}, expected several of different values")
    return written


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Compute which settings mattered, from complete trials only.

    The value of a trial that was stopped early is of fewer epochs, so it is not comparable with those of complete trials.

    Args:
        space: What was searched.
        trials: Trials with a value.

    Returns:
        Setting to the fraction of the variance of the value that a random forest over settings ascribes to it, largest
        first; empty where complete trials do not differ.

    Source: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014 (fANOVA).
    """
    complete = _complete(trials)
    if len({trial.value for trial in complete}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in complete:
        study.add_trial(optuna.create_trial(params=trial.point, distributions=space, value=trial.value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def _counts(trials: Sequence[Trial]) -> str:
    complete = len(_complete(trials))
    return f"{_trials(complete)}, {len(trials) - complete} stopped early"


def _trials(complete: int) -> str:
    return "1 complete trial" if complete == 1 else f"{complete} complete trials"


def _importance(fractions: dict[str, float], trials: Sequence[Trial], metric: str) -> Figure:
    figure = Figure(figsize=(6.5, 1.6 + 0.45 * len(fractions)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(fractions)[::-1], list(fractions.values())[::-1], color=_COLOUR)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel(f"importance for {metric} (fANOVA)")
    figure.suptitle(f"{_counts(trials)} and left out", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return figure


def _parallel_coordinates(space: Space, trials: Sequence[Trial], read: Callable[[Point], Point], metric: str) -> Figure:
    """A vertical axis a setting and one for the value, each scaled to itself; a line a trial, the best on top.

    A line has a dot on the axes of what its trial reads, and passes over the others.
    """
    ordered = sorted(trials, key=lambda trial: (trial.state == "complete", trial.value))
    values = [trial.value or 0.0 for trial in ordered]
    points = [read(trial.point) for trial in ordered]
    columns = {name: _column(name, kind, points) for name, kind in space.items()}
    figure = Figure(figsize=(3.0 + 1.9 * len(space), 5.0), layout="constrained")
    axes = figure.subplots()
    heights = np.array([*(found for found, _ in columns.values()), _linear(values)])
    for trial, line in zip(ordered, heights.T, strict=True):
        (steps,) = np.nonzero(~np.isnan(line))
        if trial.state == "complete":
            axes.plot(steps, line[steps], color=_COLOURS(line[-1]), linewidth=1.8, marker=".")
        else:
            axes.plot(steps, line[steps], color=_GREY, linewidth=0.8, linestyle="--", marker=".")
    for position, (_, ticks) in enumerate(columns.values()):
        _axis(axes, position, ticks)
    _axis(axes, len(columns), dict(zip(_linear([min(values), max(values)]), _words(values), strict=True)))
    axes.set_xticks(range(len(columns) + 1), [wrapped(name, _WIDTH) for name in [*columns, metric]], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) + 0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.suptitle(f"{_counts(trials)} (dashed grey); the darker, the higher {metric}", fontsize=10)
    return figure


def _column(name: str, kind: BaseDistribution, points: Sequence[Point]) -> tuple[np.ndarray, dict[float, str]]:
    """Heights of the points on an axis, NaN where it is not read, and its ticks."""
    heights = np.full(len(points), np.nan)
    read = [name in point for point in points]
    heights[read], ticks = _heights(kind, [point[name] for point in points if name in point])
    return heights, ticks


def _heights(kind: BaseDistribution, values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Values as heights from 0 to 1 on an axis of their own, and its ticks; choices are spaced evenly."""
    if isinstance(kind, CategoricalDistribution):
        heights = _linear(range(len(kind.choices)))
        of_choice = dict(zip(map(repr, kind.choices), heights, strict=True))
        return [of_choice[repr(value)] for value in values], dict(zip(heights, map(str, kind.choices), strict=True))
    if not values:
        return [], {}
    scaled = np.log(values) if getattr(kind, "log", False) else np.asarray(values, dtype=float)
    ends = [min(values), max(values)]
    return _linear(scaled), dict(zip(_linear(ends), _words(ends), strict=True))


def _linear(values: Sequence[float] | np.ndarray) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if low == high else float((value - low) / (high - low)) for value in values]


def _words(values: Sequence[float]) -> list[str]:
    return [f"{value:.4g}" for value in (min(values), max(values))]


def _axis(axes: Axes, position: float, ticks: dict[float, str]) -> None:
    axes.axvline(position, color="black", linewidth=0.8, zorder=3)
    behind = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.0}
    for height, text in ticks.items():
        axes.text(position + 0.04, height, wrapped(text, _WIDTH), va="center", fontsize=8.5, bbox=behind, zorder=4)


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as fresh:
        figure.savefig(fresh, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    return path
