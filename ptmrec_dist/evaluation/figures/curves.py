"""A metric over the epochs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from ptmrec_dist.evaluation.figures.style import INK, Styles, axes, legend, legend_height, mean_and_sd, svg_of

Point = tuple[float, float]
"""Epoch and value."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run."""

    points: Sequence[Point]
    """A point an evaluation."""
    kept: int | None = None
    """Epoch that the run kept, where that is known."""

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]], key: str, kept: int | None) -> "Curve":
        """Read a curve off a run's evaluations.

        Args:
            history: A record an evaluation.
            key: Part and metric, as `validation.recall@20`; records without it are skipped.
            kept: Epoch that the run kept.

        Returns:
            The curve.
        """
        return cls([(line["epoch"], line[key]) for line in history if key in line], kept)

    @property
    def kept_points(self) -> list[Point]:
        """What the run kept, as one point or none."""
        return [point for point in self.points if point[0] == self.kept]


def learning_curves(series: Mapping[str, Sequence[Curve]], *, styles: Styles, label: str) -> str:
    """Draw a metric over the epochs, and a ring around the evaluation that each run kept.

    Args:
        series: Setting to its curves, one a seed.
        styles: Setting to its style.
        label: The metric.

    Returns:
        An `<svg>` element; a line is the mean over the seeds that reached the epoch, the band one standard deviation.
    """
    with axes(4.9, 3.0 + legend_height(list(series))) as (fig, (plot,)):
        for order, (name, curves) in enumerate(series.items()):
            epochs, values, spreads = zip(*_mean(curves), strict=True)
            low, high = ([v + side * s for v, s in zip(values, spreads, strict=True)] for side in (-1, 1))
            plot.fill_between(epochs, low, high, color=styles[name]["color"], alpha=0.16, linewidth=0)
            # A long line shows its marker now and then only.
            plot.plot(
                epochs,
                values,
                **styles[name],
                linewidth=1.9,
                markersize=4.5,
                markevery=max(1, len(epochs) // 8),
                zorder=3 - order / 10,
            )
            # Of each seed by itself: at the mean of kept epochs there need not be an evaluation.
            for kept in _kept(curves):
                plot.plot(*kept, "o", mfc="none", mec=styles[name]["color"], markersize=10, mew=1.6, zorder=4)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_xlabel("epoch")
        plot.set_ylabel(label)
        plot.margins(x=0.04, y=0.08)
        plot.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        legend(fig, list(series), styles)
        return svg_of(fig, _alternative(series, label))


def _mean(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
    by_epoch = defaultdict(list)
    for curve in curves:
        for epoch, value in curve.points:
            by_epoch[epoch].append(value)
    return [(epoch, *mean_and_sd(values)) for epoch, values in sorted(by_epoch.items())]


def _kept(curves: Sequence[Curve]) -> list[Point]:
    return [point for curve in curves for point in curve.kept_points]


def _alternative(series: Mapping[str, Sequence[Curve]], label: str) -> str:
    parts = []
    for name, curves in series.items():
        epoch, value, _ = _mean(curves)[0]
        kept = " and ".join(f"{value:.3f} at epoch {epoch:g}" for epoch, value in _kept(curves))
        parts.append(f"{name} from {value:.3f} at epoch {epoch:g}" + (f", kept {kept}" if kept else ""))
    return f"{label} over the epochs: {'; '.join(parts)}"
