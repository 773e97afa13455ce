"""Figures as SVG that stands inside a page: it takes on the page's text colour and needs nothing else.

What differs in hue differs in lightness, in marker and dashes, or has its name beside it, so that every figure can be read in
grey and without telling red from green. Each carries its numbers as a text for those who cannot see it.
"""

from ptmrec_dist.evaluation.figures.bars import bars
from ptmrec_dist.evaluation.figures.curves import Curve, learning_curves
from ptmrec_dist.evaluation.figures.density import densities
from ptmrec_dist.evaluation.figures.lines import bucket_lines
from ptmrec_dist.evaluation.figures.style import Figure

__all__ = ["Curve", "Figure", "bars", "bucket_lines", "densities", "learning_curves"]
