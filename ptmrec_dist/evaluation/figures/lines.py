"""A metric by buckets of items or users."""

from collections.abc import Mapping, Sequence

from ptmrec_dist.evaluation.buckets import Bucket
from ptmrec_dist.evaluation.figures.style import INK, Styles, axes, in_words, legend, legend_height, mean_and_sd, svg_of

_LEVEL = 7  # characters of a bucket's name that fit beside the next one


def bucket_lines(series: Mapping[str, Sequence[Sequence[Bucket]]], *, styles: Styles, label: str, of: str) -> str:
    """Draw Recall of every setting in every bucket.

    Args:
        series: Setting to its buckets, a sequence a seed; all have the same buckets.
        styles: Setting to its style.
        label: The metric.
        of: What the buckets are made of.

    Returns:
        An `<svg>` element; error bars are one standard deviation over seeds to either side.
    """
    names = [bucket.label for bucket in next(iter(series.values()))[0]]
    values = {setting: _by_bucket(seeds) for setting, seeds in series.items()}
    with axes(4.9, 3.0 + legend_height(list(series))) as (fig, (plot,)):
        for order, (setting, buckets) in enumerate(values.items()):
            means, spreads = zip(*map(mean_and_sd, buckets), strict=True)
            # Side by side within a bucket, so that error bars do not cover each other.
            positions = [
                position + (order - (len(values) - 1) / 2) * 0.5 / len(values) for position in range(len(names))
            ]
            plot.errorbar(
                positions,
                means,
                yerr=spreads if max(spreads) else None,
                **styles[setting],
                linewidth=1.5,
                elinewidth=1.1,
                capsize=2.5,
                markersize=5.5,
            )
        plot.set_xticks(range(len(names)), names)
        if max(map(len, names)) > _LEVEL:
            plot.tick_params(axis="x", labelrotation=90)
        plot.set_xlabel(of)
        plot.set_ylabel(label)
        plot.set_ylim(bottom=0)
        plot.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        legend(fig, list(series), styles)
        return svg_of(fig, _alternative(values, names, label, of))


def _by_bucket(seeds: Sequence[Sequence[Bucket]]) -> list[list[float]]:
    return [[bucket.recall for bucket in same] for same in zip(*seeds, strict=True)]


def _alternative(values: Mapping[str, list[list[float]]], names: Sequence[str], label: str, of: str) -> str:
    texts = (
        f"{setting}: " + ", ".join(f"{name} {in_words(seeds)}" for name, seeds in zip(names, buckets, strict=True))
        for setting, buckets in values.items()
    )
    return f"{label} by {of}. {'. '.join(texts)}"
