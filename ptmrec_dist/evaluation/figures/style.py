"""What all figures share: fonts, lines that can be told apart in grey, and the way into a page."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib import figure, rc_context

from ptmrec_dist.evaluation.tables import mean_of_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the colour of the page's text."""
_COLOURS = (
    "#0072b2",
    "#8a94a0",
    "#e08a1e",
    "#56b4e9",
    "#009e73",
    "#b2568e",
    "#5b4b9a",
    "#a08a00",
)  # after Okabe and Ito
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)))
_WIDE = 22  # characters of a name that two columns of a legend have room for
_STYLE = {
    "figure.facecolor": "none",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "ptmrec",
}


@dataclass(frozen=True)
class Figure:
    """A figure of a page."""

    title: str
    """What it shows."""
    svg: str
    """An `<svg>` element."""
    reading: str
    """How to read it, in a sentence."""


@contextmanager
def axes(
    width: float, height: float, rows: int = 1, columns: int = 1, ratios: Sequence[float] | None = None
) -> Iterator[tuple[figure.Figure, "list[Axes]"]]:
    """Open a figure; the style holds while the block runs.

    Args:
        width: Inches.
        height: Inches.
        rows: Rows of plots.
        columns: Columns of plots.
        ratios: Heights of the rows; by default all the same.

    Yields:
        The figure and its plots, row by row.
    """
    with rc_context(_STYLE):
        drawn = figure.Figure(figsize=(width, height), layout="constrained")
        plots = drawn.subplots(rows, columns, squeeze=False, height_ratios=ratios)
        yield drawn, list(plots.flat)


def line_style(order: int) -> dict[str, Any]:
    """Say how a line is drawn so that it can be told from the others.

    Args:
        order: Its number; the first is drawn strongest.

    Returns:
        Colour, marker and dashes, as matplotlib takes them; the 64 first differ.
    """
    turn = order // len(_COLOURS)
    return {
        "color": _COLOURS[order % 8],
        "marker": _MARKERS[(order + turn) % 8],
        "linestyle": _DASHES[(order + 2 * turn) % 8],
    }


def legend_height(names: Sequence[str]) -> float:
    """Compute the room that `legend` needs, in inches.

    Args:
        names: Names of the lines.

    Returns:
        The height.
    """
    return 0.22 * -(-len(names) // _columns(names))


def legend(drawn: figure.Figure, names: Sequence[str]) -> None:
    """Name the lines below the plot, where there are several.

    Args:
        drawn: The figure.
        names: Names of the lines.
    """
    if len(names) > 1:
        drawn.legend(frameon=False, loc="outside lower center", ncols=_columns(names), fontsize=9.5, handlelength=3.2)


def _columns(names: Sequence[str]) -> int:
    return 2 if max(map(len, names)) <= _WIDE else 1


def svg_of(drawn: figure.Figure, alternative: str) -> str:
    """Turn a figure into an element of a page.

    Args:
        drawn: The figure.
        alternative: What it says, for those who cannot see it.

    Returns:
        An `<svg>` element without a size of its own, so that it fills whatever column the page gives it.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative, quote=True)}"', 1)


def told(values: Sequence[float]) -> str:
    """Write a mean over seeds for a figure, with as many digits as its size asks for.

    Args:
        values: A value a seed.

    Returns:
        Such as `0.123` or `0.123 ± 0.004`.
    """
    size = abs(mean_and_sd(values)[0])
    # Three digits or so of small values, too: recall among many items is small.
    return mean_of_seeds(values, 3 if size >= 0.1 else 4 if size >= 0.01 else 5)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Compute a mean and a sample standard deviation.

    Args:
        values: A value a seed.

    Returns:
        Both; a deviation of 0 where there is only one value.
    """
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, (squares / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0
