"""Values of several settings, a row each, with every seed and their spread."""

from collections.abc import Mapping, Sequence

from ptmrec_dist.evaluation.figures.style import INK, Styles, axes, in_words, mean_and_sd, svg_of, wrapped

Seeds = Sequence[float]
"""A value a seed."""
_BAR, _LINE, _GAP = 0.19, 0.17, 0.1  # inches of a bar, of a line of its name above it, and between two rows


def bars(
    parts: Mapping[str, Mapping[str, Seeds]],
    *,
    styles: Styles,
    label: str = "",
    chance: Mapping[str, float] | None = None,
    from_zero: bool = True,
) -> str:
    """Draw the values of every setting as a row, a block of rows for every part.

    Args:
        parts: Name of the part to setting to its values, one a seed.
        styles: Setting to its style.
        label: What is measured.
        chance: Part to the value at chance level, shown as a dotted line.
        from_zero: Draw bars from zero, for amounts; points without bars otherwise.

    Returns:
        An `<svg>` element; error bars are one standard deviation to either side, small points are single seeds.
    """
    heights = [sum(map(_height, settings)) for settings in parts.values()]
    with axes(4.9, sum(heights) + 0.65 * len(parts) + 0.3, rows=len(parts), ratios=heights) as (fig, plots):
        for plot, (part, settings) in zip(plots, parts.items(), strict=True):
            rows = _block(plot, settings, styles, from_zero)
            plot.set_title(part, loc="left", fontsize=11, fontweight="bold")
            if chance is not None and part in chance:
                # Beside the bars only, so that it crosses no name.
                ends = [row - _BAR / 2 for row in rows], [row + _BAR / 2 for row in rows]
                plot.vlines([chance[part]] * len(rows), *ends, color=INK, linestyle=":", linewidth=1.6)
        plots[-1].set_xlabel(label)
        return svg_of(fig, _alternative(parts, label))


def _height(setting: str) -> float:
    """Inches of a row: the name stands above the bar, so that a long one takes nothing of its width."""
    return _GAP + _LINE * (wrapped(setting).count("\n") + 1) + _BAR


def _block(plot, settings: Mapping[str, Seeds], styles: Styles, from_zero: bool) -> list[float]:  # type: ignore[no-untyped-def]
    """Draw a part; gives the middle of each bar, in inches from the top."""
    rows, starts, ends, bottom = [], [], [], 0.0
    for setting, values in settings.items():
        bottom += _height(setting)
        row, (mean, spread) = bottom - _BAR / 2, mean_and_sd(values)
        colour = styles[setting]["color"]
        plot.text(0, bottom - _BAR - 0.03, wrapped(setting), transform=plot.get_yaxis_transform(), fontsize=9.5)
        plot.text(1.03, row, in_words(values), transform=plot.get_yaxis_transform(), va="center", fontsize=9.5)
        if from_zero:
            plot.barh(row, mean, _BAR, color=colour)
        if len(values) > 1:
            plot.errorbar(mean, row, xerr=spread, color=INK, linewidth=1.3, capsize=3.5)
            plot.plot(values, [row] * len(values), "o", color=INK, markersize=2.6, alpha=0.9, zorder=3)
        if not from_zero:
            plot.plot(mean, row, "D", color=colour, markersize=5.5, zorder=4)
        rows.append(row)
        starts.append(0.0 if from_zero else min(mean - spread, *values))
        ends.append(max(mean + spread, *values))
    low, high = min(starts), max(ends)
    room = (high - low) or abs(high) or 1.0
    plot.set_xlim(low if from_zero else low - 0.06 * room, high + 0.06 * room)
    plot.set_ylim(bottom + _GAP, 0)
    plot.set_yticks([])
    plot.locator_params(axis="x", nbins=4)
    plot.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    plot.set_axisbelow(True)
    return rows


def _alternative(parts: Mapping[str, Mapping[str, Seeds]], label: str) -> str:
    texts = (
        f"{part}: " + ", ".join(f"{setting} {in_words(values)}" for setting, values in settings.items())
        for part, settings in parts.items()
    )
    return ". ".join(filter(None, [label, *texts]))
