"""Pictures of a sweep: its trials as lines through their settings, and which settings mattered."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptmrec_dist.sweep.space import Space
from ptmrec_dist.sweep.trials import Trial

_COLOUR = "#0072b2"


def draw(space: Space, trials: Sequence[Trial], metric: str, folder: Path) -> list[Path]:
    """Draw a sweep as `parallel_coordinates.png` and, where values differ, `importance.png`.

    Pruned trials take part with the best value that they had come to.

    Args:
        space: What was searched.
        trials: Trials with a value.
        metric: Name of the value.
        folder: Where the pictures go.

    Returns:
        The files written.
    """
    study = _study_of(space, trials)
    written = [_save(_parallel_coordinates(study, metric), folder / "parallel_coordinates.png")]
    if len({trial.value for trial in trials}) > 1:
        written.append(_save(_importance(study, metric), folder / "importance.png"))
    return written


def _study_of(space: Space, trials: Sequence[Trial]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(optuna.create_trial(params=trial.point, distributions=space, value=trial.value))
    return study


def _parallel_coordinates(study: optuna.Study, metric: str) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes: Axes = optuna.visualization.matplotlib.plot_parallel_coordinate(study, target_name=metric)
    axes.set_title("")
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(2.4 + 1.8 * len(study.trials[0].params), 4.5)
    axes.set_xticks(axes.get_xticks(), [metric, *sorted(study.trials[0].params)], rotation=20, ha="right")
    for lines in axes.collections:
        lines.set_cmap("cividis_r")  # in grey, and to the colour-blind: the darker the better
    for beside in figure.axes:
        for label in beside.get_yticklabels(which="both"):
            label.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5})
    return figure


def _importance(study: optuna.Study, metric: str) -> Figure:
    """Shares of the variance of the value that a random forest over settings ascribes to each (fANOVA)."""
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    figure = Figure(figsize=(5.5, 1.2 + 0.45 * len(shares)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(shares)[::-1], list(shares.values())[::-1], color=_COLOUR)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel(f"importance for {metric} (fANOVA, {len(study.trials)} trials)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path
