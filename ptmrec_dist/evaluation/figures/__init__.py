"""Figures as SVG that stands inside a page: it takes on the page's text colour and needs nothing else.

A setting has one colour, marker and dash pattern in all figures of a page (`styles_of`), and bars have its name above them, so
that every figure can be read in grey and without distinguishing red from green. Each carries its numbers as a text for screen
readers.
"""

from ptmrec_dist.evaluation.figures.bars import bars
from ptmrec_dist.evaluation.figures.curves import Curve, learning_curves
from ptmrec_dist.evaluation.figures.density import densities
from ptmrec_dist.evaluation.figures.lines import bucket_lines
from ptmrec_dist.evaluation.figures.style import Figure, Styles, styles_of

__all__ = ["Curve", "Figure", "Styles", "bars", "bucket_lines", "densities", "learning_curves", "styles_of"]
