"""Appearance of the products of the synthetic data set: kinds as outlines, colours, scenes.

A product is a list of painted shapes on a square of 100 x 100 units, y downwards, drawn in this order. A shape is a
smooth curve through its points; a point given twice makes a corner.
"""

import math
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Colour = tuple[int, int, int]
Paint = Literal["cloth", "trim", "inside", "wood", "metal", "stem", "glow"]

COLOURS: dict[str, Colour] = {
    "red": (192, 57, 52),
    "orange": (228, 120, 48),
    "yellow": (236, 184, 60),
    "green": (72, 132, 88),
    "blue": (52, 104, 172),
    "purple": (122, 84, 156),
    "pink": (226, 132, 156),
    "black": (56, 58, 66),
}
SCENES: dict[str, tuple[Colour, Colour]] = {  # wall, floor
    "linen": ((246, 240, 229), (226, 212, 192)),
    "mist": ((216, 228, 238), (186, 203, 218)),
    "blush": ((249, 221, 211), (233, 193, 181)),
    "sage": ((207, 220, 200), (176, 194, 168)),
    "dusk": ((82, 94, 124), (58, 67, 94)),
    "clay": ((170, 102, 78), (136, 78, 60)),
}
CREAM: Colour = (255, 249, 236)  # what patterns are printed in
PAINTS: dict[str, Colour] = {  # the other paints take the product's colour
    "wood": (178, 128, 84),
    "metal": (150, 152, 158),
    "stem": (96, 126, 92),
    "glow": (255, 236, 190),
}


@dataclass(frozen=True)
class Look:
    """Attributes shown in the picture of one product."""

    kind: str
    """A key of `KINDS`."""
    colour: str
    """A key of `COLOURS`."""
    pattern: str
    """A key of `drawing.PATTERNS`."""
    scene: str
    """A key of `SCENES`."""


@dataclass(frozen=True)
class Shape:
    """One painted part of a product."""

    paint: Paint
    """`cloth` carries the pattern, `trim` and `inside` are darker tones of the product's colour."""
    points: tuple[Point, ...]
    """Points that the curve passes through."""
    stroke: float = 0.0
    """Width of an open line; 0 fills a closed outline."""


def _shape(paint: Paint, outline: str, stroke: float = 0.0) -> Shape:
    return Shape(paint, _points(outline), stroke)


def _symmetric(paint: Paint, left_half: str) -> Shape:
    left = _points(left_half)
    return Shape(paint, left + tuple((100 - x, y) for x, y in reversed(left)))


def _oval(paint: Paint, x: float, y: float, width: float, height: float) -> Shape:
    angles = [2 * math.pi * step / 12 for step in range(12)]
    return Shape(paint, tuple((x + width / 2 * math.cos(a), y + height / 2 * math.sin(a)) for a in angles))


def _points(outline: str) -> tuple[Point, ...]:
    """`x,y` by `x,y`; an exclamation mark makes a corner."""
    points: list[Point] = []
    for word in outline.split():
        x, y = word.rstrip("!").split(",")
        points += [(float(x), float(y))] * (2 if word.endswith("!") else 1)
    return tuple(points)


KINDS: dict[str, tuple[Shape, ...]] = {
    "mug": (
        _shape("trim", "67,44 80,42 86,53 80,67 66,70", 5.5),
        _shape("cloth", "27,36! 73,36! 71,76 66,84 50,86 34,84 29,76"),
        _oval("trim", 50, 36, 46, 12),
        _oval("inside", 50, 36.4, 41, 9.4),
    ),
    "vase": (
        _shape("stem", "50,36 49,22 44,8", 1.4),
        _shape("stem", "51,36 56,22 64,13", 1.4),
        _shape("stem", "48,26 40,24 35,16 44,18"),
        _shape("stem", "47,14 42,8 43,1 48,6"),
        _shape("stem", "55,24 64,26 71,22 63,19"),
        _shape("stem", "62,15 64,8 72,6 69,13"),
        _symmetric("cloth", "50,88 38,87 37,86 27,66 32,51 42,42 43,35 40,30!"),
        _oval("inside", 50, 30, 20, 5.2),
    ),
    "lamp": (
        _oval("wood", 50, 84, 32, 8),
        _shape("wood", "50,84 50,50", 4),
        _oval("glow", 50, 57, 44, 10),
        _shape("cloth", "35,18! 65,18! 77,56! 50,61 23,56!"),
        _oval("trim", 50, 18, 30, 5.2),
    ),
    "t-shirt": (
        _shape("metal", "50,14 50,9 54,7 53,2 48,4", 1.6),
        _shape("metal", "26,22! 50,13 74,22!", 1.6),
        _oval("inside", 50, 21, 22, 8),
        _symmetric("cloth", "50,86 28,85! 29,64 30,46! 20,51! 8,35! 18,24 29,20 39,17! 43,25 50,28"),
        _shape("trim", "38,17 42,26 50,29 58,26 62,17", 3),
        _shape("trim", "30,46 31,37", 0.8),
        _shape("trim", "70,46 69,37", 0.8),
    ),
    "bag": (
        _shape("wood", "37,46 38,22 50,12 62,22 63,46", 3.2),
        _shape("cloth", "25,38! 75,38! 80,84! 50,86 20,84!"),
        _shape("trim", "25,38! 75,38! 75.6,43! 24.4,43!"),
        _shape("wood", "37,50 37,39", 3.2),
        _shape("wood", "63,50 63,39", 3.2),
    ),
    "cushion": (_shape("cloth", "14,22! 50,26 86,22! 82,53 86,86! 50,82 14,86! 18,53"),),
    "chair": (
        _shape("wood", "30,74 26,90", 3),
        _shape("wood", "70,74 74,90", 3),
        _symmetric("cloth", "50,74 25,74! 24,30 30,17 50,14"),
        _symmetric("trim", "50,78 22,78! 22,64 28,60 50,59"),
        _shape("cloth", "14,50 20,44 27,48 28,78! 17,78!"),
        _shape("cloth", "86,50 80,44 73,48 72,78! 83,78!"),
    ),
    "umbrella": (
        _shape("wood", "50,14 50,80 53,87 60,87 62,80", 3),
        _symmetric("cloth", "50,48 39,49 29,54! 22,49 15,49 8,54! 16,32 32,19 50,15"),
        _shape("trim", "29,54 36,32 50,15", 0.9),
        _shape("trim", "71,54 64,32 50,15", 0.9),
        _shape("wood", "50,16 50,9", 2.4),
    ),
}
