"""Values of several settings beside each other, a row each, with every seed and their spread."""

from collections.abc import Mapping, Sequence

from ptmrec_dist.evaluation.figures.style import INK, axes, mean_and_sd, svg_of, told

Seeds = Sequence[float]
"""A value a seed."""
_BAR, _DOT, _ROW = "#5b9fc9", "#2a86bd", 0.30  # the row in inches


def bars(
    parts: Mapping[str, Mapping[str, Seeds]],
    *,
    label: str = "",
    chance: Mapping[str, float] | None = None,
    from_zero: bool = True,
) -> str:
    """Draw the values of every setting as a row, a block of rows for every part.

    Args:
        parts: Name of the part to setting to its values, one a seed.
        label: What is measured.
        chance: Part to what a random ranking reaches, drawn as a dotted line.
        from_zero: Draw bars from zero, for amounts; points without bars otherwise.

    Returns:
        An `<svg>` element; error bars are one standard deviation to either side, small points are single seeds.
    """
    counts = [len(settings) for settings in parts.values()]
    heights = [_ROW * count + 0.35 for count in counts]
    with axes(4.9, sum(heights) + 0.45, rows=len(parts), ratios=heights) as (drawn, plots):
        for plot, (part, settings) in zip(plots, parts.items(), strict=True):
            _block(plot, settings, from_zero)
            plot.set_title(part, loc="left", fontsize=11, fontweight="bold")
            if chance is not None and part in chance:
                plot.axvline(chance[part], color=INK, linestyle=":", linewidth=1.2)
        plots[-1].set_xlabel(label)
        return svg_of(drawn, _alternative(parts, label))


def _block(plot, settings: Mapping[str, Seeds], from_zero: bool) -> None:  # type: ignore[no-untyped-def]
    starts, ends = [], []
    for row, values in enumerate(settings.values()):
        mean, spread = mean_and_sd(values)
        if from_zero:
            plot.barh(row, mean, 0.62, color=_BAR, edgecolor=_DOT, linewidth=0.6)
        if len(values) > 1:
            plot.errorbar(mean, row, xerr=spread, color=INK, linewidth=1.3, capsize=3.5)
            plot.plot(values, [row] * len(values), "o", color=INK, markersize=2.6, alpha=0.9, zorder=3)
        if not from_zero:
            plot.plot(mean, row, "D", color=_DOT, markersize=5.5, zorder=4)
        starts.append(0.0 if from_zero else min(mean - spread, *values))
        ends.append(max(mean + spread, *values))
    low, high = min(starts), max(ends)
    room = (high - low) or abs(high) or 1.0
    for row, values in enumerate(settings.values()):
        plot.text(1.03, row, told(values), transform=plot.get_yaxis_transform(), va="center", fontsize=9.5)
    plot.set_xlim(low if from_zero else low - 0.06 * room, high + 0.06 * room)
    plot.set_ylim(len(settings) - 0.5, -0.5)
    plot.set_yticks(range(len(settings)), list(settings))
    plot.tick_params(axis="y", length=0)
    plot.locator_params(axis="x", nbins=4)
    plot.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    plot.set_axisbelow(True)


def _alternative(parts: Mapping[str, Mapping[str, Seeds]], label: str) -> str:
    said = (
        f"{part}: " + ", ".join(f"{setting} {told(values)}" for setting, values in settings.items())
        for part, settings in parts.items()
    )
    return ". ".join(filter(None, [label, *said]))
