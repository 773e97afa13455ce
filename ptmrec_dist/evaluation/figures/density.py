"""Features as points in the plane and their density (PTMRec Fig. 4)."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

from ptmrec_dist.evaluation.figures.style import INK, axes, svg_of
from ptmrec_dist.evaluation.geometry import Cloud

# Without its palest end, which would vanish on white.
_COLOURS = ListedColormap(colormaps["cividis_r"](np.linspace(0.14, 1, 256)))


def densities(clouds: Mapping[str, Cloud], most: float, *, colour: str) -> str:
    """Draw the map of each modality, and below it the density of its directions.

    Args:
        clouds: Modality to its map.
        most: Upper end of the density of directions, the same for all figures that are compared.
        colour: Colour of the setting.

    Returns:
        An `<svg>` element; the points lie in it as a bitmap, since there are thousands.
    """
    with axes(4.9, 3.9 if len(clouds) > 1 else 5.4, rows=2, columns=len(clouds), ratios=(2.2, 1)) as (fig, plots):
        for column, (modality, cloud) in enumerate(clouds.items()):
            above, below = plots[column], plots[len(clouds) + column]
            _map(above, cloud)
            above.set_title(modality, fontsize=11)
            below.fill_between(cloud.angles, cloud.angle_densities, color=colour, alpha=0.25, linewidth=0)
            below.plot(cloud.angles, cloud.angle_densities, color=colour, linewidth=1.6)
            below.axhline(1 / (2 * np.pi), color=INK, linestyle=":", linewidth=1)
            below.set_ylim(0, most)
            below.set_xticks([-np.pi, 0, np.pi], ["\N{MINUS SIGN}180°", "0°", "180°"])
            # Inside their plot: otherwise those of neighbouring plots touch.
            first, _, last = below.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")
            below.set_xlabel("direction")
            if not column:
                below.set_ylabel("density")
        return svg_of(fig, _alternative(clouds))


def _map(plot, cloud: Cloud) -> None:  # type: ignore[no-untyped-def]
    order = np.argsort(cloud.densities)  # the densest on top
    x, y = cloud.points[order].T
    size = np.clip(4000 / len(x), 4, 22)
    plot.scatter(x, y, s=size, c=cloud.densities[order], cmap=_COLOURS, vmin=0, vmax=1, linewidths=0, rasterized=True)
    plot.set_facecolor("white")
    reach = np.abs(cloud.points).max() * 1.05
    plot.set_xlim(-reach, reach)
    plot.set_ylim(-reach, reach)
    plot.set_aspect("equal")
    plot.set_xticks([])
    plot.set_yticks([])
    for spine in plot.spines.values():
        spine.set_visible(True)


def _alternative(clouds: Mapping[str, Cloud]) -> str:
    texts = []
    for modality, cloud in clouds.items():
        peak = int(cloud.angle_densities.argmax())
        texts.append(
            f"{modality}, {len(cloud.points)} items: the density of directions lies between "
            f"{cloud.angle_densities.min():.2f} and {cloud.angle_densities[peak]:.2f}, highest at "
            f"{np.degrees(cloud.angles[peak]):.0f} degrees"
        )
    return f"t-SNE map and density by direction. {'; '.join(texts)}"
