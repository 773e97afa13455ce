"""How a metric went over the epochs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from ptmrec_dist.evaluation.figures.style import INK, axes, legend, legend_height, line_style, mean_and_sd, svg_of

Point = tuple[float, float]
"""Epoch and value."""


@dataclass(frozen=True)
class Curve:
    """A run's way through its epochs."""

    points: Sequence[Point]
    """Its evaluations."""
    kept: int | None = None
    """Epoch that the run kept, where that is known."""

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]], key: str, kept: int | None) -> "Curve":
        """Read a curve off a run's evaluations.

        Args:
            history: A line an evaluation.
            key: Part and metric, as `validation.recall@20`; lines without it are passed over.
            kept: Epoch that the run kept.

        Returns:
            The curve.
        """
        return cls([(line["epoch"], line[key]) for line in history if key in line], kept)

    @property
    def kept_points(self) -> list[Point]:
        """What the run kept, as one point or none."""
        return [point for point in self.points if point[0] == self.kept]


def learning_curves(series: Mapping[str, Sequence[Curve]], *, label: str) -> str:
    """Draw a metric over the epochs, and a ring at what was kept: the mean over seeds of that epoch and of its value.

    Args:
        series: Setting to its curves, one a seed; the first setting is drawn strongest.
        label: The metric.

    Returns:
        An `<svg>` element; a line is the mean over the seeds that reached the epoch, the band one standard deviation.
    """
    means = {name: _mean(curves) for name, curves in series.items()}
    with axes(4.9, 3.0 + legend_height(list(series))) as (drawn, (plot,)):
        for order, (name, points) in enumerate(means.items()):
            style = line_style(order)
            epochs, values, spreads = zip(*points, strict=True)
            low, high = ([v + side * s for v, s in zip(values, spreads, strict=True)] for side in (-1, 1))
            plot.fill_between(epochs, low, high, color=style["color"], alpha=0.16, linewidth=0)
            # A long line shows its marker now and then only.
            plot.plot(
                epochs,
                values,
                **style,
                linewidth=1.9,
                markersize=4.5,
                markevery=max(1, len(epochs) // 8),
                label=name,
                zorder=3 - order / 10,
            )
            if kept := _mean_kept(series[name]):
                plot.plot(*kept, "o", mfc="none", mec=INK, markersize=10, mew=1.2, zorder=4)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_xlabel("epoch")
        plot.set_ylabel(label)
        plot.margins(x=0.04, y=0.08)
        plot.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        legend(drawn, list(series))
        return svg_of(drawn, _alternative(series, label))


def _mean(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
    by_epoch = defaultdict(list)
    for curve in curves:
        for epoch, value in curve.points:
            by_epoch[epoch].append(value)
    return [(epoch, *mean_and_sd(values)) for epoch, values in sorted(by_epoch.items())]


def _mean_kept(curves: Sequence[Curve]) -> Point | None:
    kept = [point for curve in curves for point in curve.kept_points]
    if not kept:
        return None
    epochs, values = zip(*kept, strict=True)
    return mean_and_sd(epochs)[0], mean_and_sd(values)[0]


def _alternative(series: Mapping[str, Sequence[Curve]], label: str) -> str:
    said = []
    for name, curves in series.items():
        epoch, value, _ = _mean(curves)[0]
        start = f"{name} from {value:.3f} at epoch {epoch:g}"
        kept = _mean_kept(curves)
        said.append(f"{start} to {kept[1]:.3f}, kept at epoch {kept[0]:g}" if kept else start)
    return f"{label} over the epochs: {'; '.join(said)}"
