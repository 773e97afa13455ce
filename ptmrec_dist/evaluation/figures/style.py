"""What all figures share: fonts, lines that can be told apart in grey, and the way into a page."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from matplotlib import figure, rc_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the colour of the page's text."""
LINES = (
    ("#0072b2", "o", "-"),
    ("#8a94a0", "s", "--"),
    ("#e08a1e", "^", "-."),
    ("#56b4e9", "D", ":"),
    ("#009e73", "v", (0, (6, 1, 1, 1, 1, 1))),
    ("#b2568e", "P", (0, (3, 1))),
    ("#5b4b9a", "X", (0, (1, 1))),
    ("#a08a00", "*", (0, (8, 2))),
)
"""Colour (after Okabe and Ito), marker and dashes of the lines of a plot, the strongest first."""
_STYLE = {
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.8,
    "savefig.dpi": 144,
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


def svg_of(drawn: figure.Figure, alternative: str) -> str:
    """Turn a figure into an element of a page.

    Args:
        drawn: The figure.
        alternative: What it says, for those who cannot see it.

    Returns:
        An `<svg>` element without a size of its own, so that it fills whatever column the page gives it.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative, quote=True)}"', 1)


def told(values: Sequence[float]) -> str:
    """Write a mean over seeds, and where there are several their standard deviation.

    Args:
        values: A value a seed.

    Returns:
        Such as `0.123` or `0.123 ± 0.004`.
    """
    mean, spread = mean_and_sd(values)
    return f"{mean:.3f} ± {spread:.3f}" if len(values) > 1 else f"{mean:.3f}"


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
