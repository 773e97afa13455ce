"""What all figures share: fonts, styles, and the way into a page."""

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib import figure, rc_context
from matplotlib.lines import Line2D

from ptmrec_dist.evaluation.tables import mean_of_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the colour of the page's text."""
_COLOURS = (
    *("#0072b2", "#8a94a0", "#e08a1e", "#56b4e9", "#009e73", "#b2568e", "#5b4b9a", "#a08a00"),  # after Okabe and Ito
    *("#d1495b", "#8c5a3c", "#a97ff0", "#2ec4b6", "#d4b106", "#f4978e", "#7cb518", "#9a2846"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)))
_HALF, _WHOLE = 22, 46  # characters of a name that one of two columns of a legend has room for, and a single one

Styles = Mapping[str, dict[str, Any]]
"""Name of a setting to its style in every figure of a page: `color`, `marker` and `linestyle` of matplotlib."""

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
    "text.parse_math": False,  # names are shown as they are, "$" too
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
        fig = figure.Figure(figsize=(width, height), layout="constrained")
        plots = fig.subplots(rows, columns, squeeze=False, height_ratios=ratios)
        yield fig, list(plots.flat)


def styles_of(names: Iterable[str]) -> Styles:
    """Choose a style for each setting, once for all figures of a page.

    Args:
        names: Names of the settings, the baseline first; a name that comes again is the same setting.

    Returns:
        The styles; the colours of the 16 first differ, and of the 64 first colour, marker and dashes together.
    """
    return {name: _style(order) for order, name in enumerate(dict.fromkeys(names))}


def _style(order: int) -> dict[str, Any]:
    turn = order // 8
    return {
        "color": _COLOURS[order % len(_COLOURS)],
        "marker": _MARKERS[(order + turn) % 8],
        "linestyle": _DASHES[(order + 2 * turn) % 8],
    }


def wrapped(name: str, width: int = _WHOLE) -> str:
    """Break a name into lines that fit a figure: at spaces, hyphens, dots, underscores and slashes where there are any.

    Args:
        name: Name of a setting.
        width: Most characters of a line.

    Returns:
        The name with line breaks, otherwise unchanged.
    """
    breakable = re.sub(
        r"(?<=[._/])(?=[A-Za-z])|(?<=[_/])(?=\d)", "\v", name
    )  # a space to textwrap, removed again below
    lines = textwrap.wrap(breakable, width, expand_tabs=False, replace_whitespace=False)
    return "\n".join(lines).replace("\v", "") or name


def legend_height(names: Sequence[str]) -> float:
    """Compute the room that `legend` needs.

    Args:
        names: Names of the lines.

    Returns:
        The height in inches.
    """
    lines = sum(wrapped(name).count("\n") + 1 for name in names)
    return 0.22 * -(-lines // _columns(names))


def legend(fig: figure.Figure, names: Sequence[str], styles: Styles) -> None:
    """Name the lines below the plot, where there are several.

    Args:
        fig: The figure.
        names: Names of the lines.
        styles: Name to its style.
    """
    if len(names) > 1:
        handles = [Line2D([], [], linewidth=1.9, markersize=5, **styles[name]) for name in names]
        made = fig.legend(
            handles,
            [" "] * len(names),  # a label that begins with an underscore would be left out
            frameon=False,
            loc="outside lower center",
            ncols=_columns(names),
            fontsize=9.5,
            handlelength=3.2,
        )
        for text, name in zip(made.get_texts(), names, strict=True):
            text.set_text(wrapped(name))


def _columns(names: Sequence[str]) -> int:
    return 2 if max(map(len, names)) <= _HALF else 1


def svg_of(fig: figure.Figure, alternative: str) -> str:
    """Turn a figure into an element of a page.

    Args:
        fig: The figure.
        alternative: What it says, for those who cannot see it.

    Returns:
        An `<svg>` element without a size of its own, so that it fills whatever column the page gives it.
    """
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative, quote=True)}"', 1)


def in_words(values: Sequence[float]) -> str:
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
