"""Plots of learning curves and comparisons, as SVG that stands inside a page and takes on its text colour.

Runs differ in lightness, markers and dashes as well as in hue, so that the plots can be read in grey and without telling
red from green.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

Series = Sequence[tuple[float, float]]
"""Points (x, y) of a curve."""

_INK = "#010203"  # stands for the colour of the page's text
_STYLE = {
    "font.size": 11,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "ptmrec",
}
_LINES = (("#0072b2", "o", "-"), ("#8a94a0", "s", "--"), ("#e08a1e", "^", "-."), ("#56b4e9", "D", ":"))
_BARS = (
    ("#0072b2", "#0072b2", ""),
    ("#a9b4bf", "#a9b4bf", ""),
    ("#f3e3c3", "#b8935a", "////"),
    ("#d5ecf9", "#56b4e9", "...."),
)


def learning_curves(series: Mapping[str, Series], *, x_label: str, y_label: str) -> str:
    """Plot a metric over the epochs; the best point of every curve is marked and named.

    Args:
        series: Run to its curve; the first one is drawn strongest.
        x_label: What runs along the x axis.
        y_label: What runs along the y axis.

    Returns:
        An `<svg>` element.
    """
    with _axes(4.9, 3.0) as (figure, axes):
        for order, (name, points) in enumerate(series.items()):
            colour, marker, dashes = _LINES[order % len(_LINES)]
            xs, ys = zip(*points)
            axes.plot(xs, ys, dashes, color=colour, linewidth=2, label=name, zorder=3 - order)
            best = max(range(len(ys)), key=ys.__getitem__)
            axes.plot(xs[best], ys[best], marker, color=colour, markersize=6, zorder=4)
            axes.annotate(f"{ys[best]:.3f}", (xs[best], ys[best]), (0, 7), textcoords="offset points", ha="center")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.06, y=0.16)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        if len(series) > 1:
            axes.legend(frameon=False, loc="best")
        return _svg(figure)


def comparison_bars(
    groups: Mapping[str, Mapping[str, float]], *, y_label: str, chance: Mapping[str, float] | None = None
) -> str:
    """Plot a group of bars for every part of the data, a bar for every run.

    Args:
        groups: Part to run to value; every part has the same runs in the same order.
        y_label: What the bars measure.
        chance: Part to what a random ranking reaches, drawn as a dotted line.

    Returns:
        An `<svg>` element.
    """
    runs = list(next(iter(groups.values())))
    width = 0.8 / len(runs)
    with _axes(4.9, 3.2) as (figure, axes):
        for order, run in enumerate(runs):
            colour, edge, hatch = _BARS[(len(runs) - 1 - order) % len(_BARS)]
            places = [group + (order - (len(runs) - 1) / 2) * width for group in range(len(groups))]
            values = [part[run] for part in groups.values()]
            bars = axes.bar(places, values, width * 0.92, color=colour, hatch=hatch, edgecolor=edge, label=run)
            axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=2, fontsize=10)
        for group, part in enumerate(groups):
            if chance is not None:
                axes.hlines(chance[part], group - 0.45, group + 0.45, color=_INK, linestyle=":", linewidth=1.2)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.tick_params(axis="x", length=0, labelsize=11)
        axes.set_ylabel(y_label)
        axes.margins(y=0.15)
        axes.legend(frameon=False, loc="upper left")
        return _svg(figure)


@contextmanager
def _axes(width: float, height: float) -> "Iterator[tuple[Figure, Axes]]":
    """A figure with one plot; the style holds while the block runs."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Without a size of its own the plot fills whatever column the page gives it.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
