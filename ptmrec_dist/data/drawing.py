"""Pictures of products, drawn from a few attributes: what the demo's shop shows instead of photographs.

A product is a list of painted shapes on a square of 100 x 100 units, y downwards. A shape is a smooth curve through its
points; a point given twice makes a corner.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[int, int, int]

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
    "linen": ((243, 236, 224), (226, 212, 192)),
    "mist": ((223, 231, 238), (197, 210, 221)),
    "blush": ((248, 224, 214), (234, 200, 188)),
    "dusk": ((82, 94, 124), (58, 67, 94)),
}
_CREAM: Colour = (255, 249, 236)
_INK = 222  # how much of the cream a pattern takes on, of 255
_SMOOTH = 3  # pictures are drawn this many times larger and reduced, which smooths their edges
_PAINTS: dict[str, Colour] = {
    "wood": (178, 128, 84),
    "metal": (150, 152, 158),
    "stem": (96, 126, 92),
    "glow": (255, 236, 190),
}


@dataclass(frozen=True)
class Look:
    """Everything that the picture of one product shows."""

    kind: str
    colour: str
    pattern: str
    scene: str


@dataclass(frozen=True)
class _Shape:
    points: tuple[Point, ...]
    paint: Literal["cloth", "trim", "inside", "wood", "metal", "stem", "glow"]
    stroke: float = 0.0  # width of the line; 0 fills the outline


def _ellipse(x: float, y: float, rx: float, ry: float) -> tuple[Point, ...]:
    angles = [2 * math.pi * step / 12 for step in range(12)]
    return tuple((x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles)


def _mirror(*left: Point) -> tuple[Point, ...]:
    return left + tuple((100 - x, y) for x, y in reversed(left))


def _corners(*points: Point) -> tuple[Point, ...]:
    return tuple(point for point in points for _ in range(2))


KINDS: dict[str, tuple[_Shape, ...]] = {
    "mug": (
        _Shape(((67, 44), (80, 42), (86, 53), (80, 67), (66, 70)), "trim", 5.5),
        _Shape(_corners((27, 36), (73, 36)) + ((71, 76), (66, 84), (50, 86), (34, 84), (29, 76)), "cloth"),
        _Shape(_ellipse(50, 36, 23, 6), "trim"),
        _Shape(_ellipse(50, 36.4, 20.5, 4.7), "inside"),
    ),
    "vase": (
        _Shape(((50, 36), (49, 22), (44, 8)), "stem", 1.4),
        _Shape(((51, 36), (56, 22), (64, 13)), "stem", 1.4),
        _Shape(((48, 26), (40, 24), (35, 16), (44, 18)), "stem"),
        _Shape(((47, 14), (42, 8), (43, 1), (48, 6)), "stem"),
        _Shape(((55, 24), (64, 26), (71, 22), (63, 19)), "stem"),
        _Shape(((62, 15), (64, 8), (72, 6), (69, 13)), "stem"),
        _Shape(
            _mirror((50, 88), (38, 87), (37, 86), (27, 66), (32, 51), (42, 42), (43, 35), (40, 30), (40, 30)), "cloth"
        ),
        _Shape(_ellipse(50, 30, 10, 2.6), "inside"),
    ),
    "lamp": (
        _Shape(_ellipse(50, 84, 16, 4), "wood"),
        _Shape(((50, 84), (50, 50)), "wood", 4),
        _Shape(_ellipse(50, 57, 22, 5), "glow"),
        _Shape(_corners((35, 18), (65, 18), (77, 56)) + ((50, 61),) + _corners((23, 56)), "cloth"),
        _Shape(_ellipse(50, 18, 15, 2.6), "trim"),
    ),
    "t-shirt": (
        _Shape(((50, 14), (50, 9), (54, 7), (53, 2), (48, 4)), "metal", 1.6),
        _Shape(((26, 22), (26, 22), (50, 13), (74, 22), (74, 22)), "metal", 1.6),
        _Shape(_ellipse(50, 21, 11, 4), "inside"),
        _Shape(
            _mirror(
                (50, 86), *_corners((28, 85)), (29, 64), *_corners((30, 46), (20, 51), (8, 35)), (18, 24), (29, 20)
            , *_corners((39, 17)), (43, 25), (50, 28)),
            "cloth",
        ),
        _Shape(((38, 17), (42, 26), (50, 29), (58, 26), (62, 17)), "trim", 3),
        _Shape(((30, 46), (31, 37)), "trim", 0.8),
        _Shape(((70, 46), (69, 37)), "trim", 0.8),
    ),
    "bag": (
        _Shape(((37, 46), (38, 22), (50, 12), (62, 22), (63, 46)), "wood", 3.2),
        _Shape(_corners((25, 38), (75, 38), (80, 84)) + ((50, 86),) + _corners((20, 84)), "cloth"),
        _Shape(_corners((25, 38), (75, 38), (75.6, 43), (24.4, 43)), "trim"),
        _Shape(((37, 50), (37, 39)), "wood", 3.2),
        _Shape(((63, 50), (63, 39)), "wood", 3.2),
    ),
    "cushion": (
        _Shape(
            ((14, 22), (14, 22), (50, 26), (86, 22), (86, 22), (82, 53), (86, 86), (86, 86), (50, 82), (14, 86), (14, 86), (18, 53)),
            "cloth",
        ),
    ),
    "chair": (
        _Shape(((30, 74), (26, 90)), "wood", 3),
        _Shape(((70, 74), (74, 90)), "wood", 3),
        _Shape(_mirror((50, 74), (25, 74), (25, 74), (24, 30), (30, 17), (50, 14)), "cloth"),
        _Shape(_mirror((50, 78), (22, 78), (22, 78), (22, 64), (28, 60), (50, 59)), "trim"),
        _Shape(((14, 50), (20, 44), (27, 48), (28, 78), (28, 78), (17, 78), (17, 78)), "cloth"),
        _Shape(((86, 50), (80, 44), (73, 48), (72, 78), (72, 78), (83, 78), (83, 78)), "cloth"),
    ),
    "umbrella": (
        _Shape(((50, 14), (50, 80), (53, 87), (60, 87), (62, 80)), "wood", 3),
        _Shape(
            ((8, 54), (8, 54), (16, 32), (32, 19), (50, 15), (68, 19), (84, 32), (92, 54), (92, 54), (85, 49), (78, 49), (71, 54), (71, 54))
            + ((61, 49), (50, 48), (39, 49), (29, 54), (29, 54), (22, 49), (15, 49)),
            "cloth",
        ),
        _Shape(((29, 54), (36, 32), (50, 15)), "trim", 0.9),
        _Shape(((71, 54), (64, 32), (50, 15)), "trim", 0.9),
        _Shape(((50, 16), (50, 9)), "wood", 2.4),
    ),
}


def _plain(draw: ImageDraw.ImageDraw, unit: float) -> None:
    del draw, unit


def _stripes(draw: ImageDraw.ImageDraw, unit: float) -> None:
    for x in range(-4, 120, 10):
        draw.rectangle((x * unit, 0, (x + 4) * unit, 120 * unit), _INK)


def _dots(draw: ImageDraw.ImageDraw, unit: float) -> None:
    for row, y in enumerate(range(0, 120, 9)):
        for x in range(6 * (row % 2), 126, 12):
            draw.circle((x * unit, y * unit), 2.9 * unit, _INK)


def _checks(draw: ImageDraw.ImageDraw, unit: float) -> None:
    for row in range(15):
        for column in range(row % 2, 15, 2):
            draw.rectangle((column * 8 * unit, row * 8 * unit, (column + 1) * 8 * unit, (row + 1) * 8 * unit), _INK)


def _waves(draw: ImageDraw.ImageDraw, unit: float) -> None:
    for y in range(0, 124, 9):
        crest = [(x * unit, (y + 3 * math.sin(x / 3)) * unit) for x in range(121)]
        draw.line(crest, _INK, round(2.8 * unit), joint="curve")


def _leaves(draw: ImageDraw.ImageDraw, unit: float) -> None:
    leaf = _curve(_corners((-6, 0)) + ((0, -3.4),) + _corners((6, 0)) + ((0, 3.4),), True)
    for row, y in enumerate(range(0, 126, 12)):
        for column in range(9):
            turn = math.radians(40 if (row + column) % 2 else -40)
            turned = leaf @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
            place = (turned + (column * 15 - 7 * (row % 2), y)) * unit
            draw.polygon([(a, b) for a, b in place.tolist()], _INK)


PATTERNS: dict[str, Callable[[ImageDraw.ImageDraw, float], None]] = {
    "plain": _plain,
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checks,
    "wavy": _waves,
    "leafy": _leaves,
}


def draw_product(look: Look, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw one product in its scene.

    Args:
        look: What to draw.
        size: Side of the picture in pixels.
        rng: Draws what differs between two products of the same look: place, scale, shade, where the pattern starts.

    Returns:
        An RGB picture of `size` x `size` pixels.
    """
    side = size * _SMOOTH
    base = _tone(COLOURS[look.colour], rng.uniform(1.03, 1.17))
    cloth = _cloth(look.pattern, base, side, rng)
    paints = _PAINTS | {"trim": _tone(base, 0.8), "inside": _tone(base, 0.45)}
    shapes = KINDS[look.kind]
    masks = _masks(shapes, side, rng)
    picture = _scene(look.scene, side).copy()
    _shadow(picture, masks, side)
    for shape, mask in zip(shapes, masks, strict=True):
        box = mask.getbbox() or (0, 0, side, side)
        extent = (box[2] - box[0], box[3] - box[1])
        surface = cloth.crop(box) if shape.paint == "cloth" else Image.new("RGB", extent, paints[shape.paint])
        picture.paste(ImageChops.multiply(surface, _light().resize(extent)), box[:2], mask.crop(box))
    return picture.reduce(_SMOOTH)


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


@cache
def _curve(points: tuple[Point, ...], closed: bool) -> np.ndarray:
    """Catmull-Rom spline through the points: float64 [N, 2]."""
    nodes = np.asarray(points)
    if closed:
        nodes = np.concatenate([nodes[-1:], nodes, nodes[:2]])
    else:
        nodes = np.concatenate([nodes[:1], nodes, nodes[-1:]])
    before, start, end, after = (nodes[k : len(nodes) - 3 + k, None] for k in range(4))
    step = np.linspace(0, 1, 9)[None, :, None]
    line = start + step / 2 * (end - before)
    line = line + step**2 * (before - 2.5 * start + 2 * end - after / 2)
    line = line + step**3 * (1.5 * (start - end) + (after - before) / 2)
    return np.asarray(line[~np.all(start == end, axis=-1).ravel()].reshape(-1, 2))


def _masks(shapes: tuple[_Shape, ...], side: int, rng: np.random.Generator) -> list[Image.Image]:
    """Where each shape is, all moved and scaled alike about the middle of the floor."""
    scale = rng.uniform(0.84, 0.94)
    foot = np.array([50, 84])
    shift = rng.uniform(-2, 2, 2)
    masks = []
    for shape in shapes:
        line = ((_curve(shape.points, shape.stroke == 0) - foot) * scale + foot + shift) * side / 100
        masks.append(_mask(line, shape.stroke * scale * side / 100, side))
    return masks


def _mask(line: np.ndarray, stroke: float, side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    points = [(x, y) for x, y in line.tolist()]
    if stroke == 0:
        draw.polygon(points, 255)
        return mask
    draw.line(points, 255, round(stroke), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.circle((x, y), stroke / 2, 255)
    return mask


@cache
def _print(pattern: str, side: int) -> Image.Image:
    """The pattern in white on black, somewhat larger than the picture."""
    sheet = Image.new("L", (round(side * 1.2),) * 2)
    PATTERNS[pattern](ImageDraw.Draw(sheet), side / 100)
    return sheet


def _cloth(pattern: str, base: Colour, side: int, rng: np.random.Generator) -> Image.Image:
    left, top = (int(shift) for shift in rng.integers(0, side // 5, 2))
    cloth = Image.new("RGB", (side, side), base)
    cloth.paste(_CREAM, (0, 0), _print(pattern, side).crop((left, top, left + side, top + side)))
    return cloth


@cache
def _scene(scene: str, side: int) -> Image.Image:
    wall, floor = SCENES[scene]
    picture = Image.new("RGB", (side, side), wall)
    picture.paste(floor, (0, round(side * 0.72), side, side))
    edge = Image.radial_gradient("L").crop((64, 64, 192, 192)).resize((side, side), Image.Resampling.BILINEAR)
    dim = edge.point([255 - value // 5 for value in range(256)])
    return ImageChops.multiply(picture, Image.merge("RGB", [dim] * 3))


@cache
def _light() -> Image.Image:
    """Light from the upper left, as grey levels to multiply by."""
    across, down = np.linspace(0, 1, 64)[None, :], np.linspace(0, 1, 64)[:, None]
    light = 1 - 0.24 * across**1.6 - 0.09 * down
    return Image.fromarray((light * 255).astype(np.uint8)).convert("RGB")


def _shadow(picture: Image.Image, masks: list[Image.Image], side: int) -> None:
    whole = reduce(ImageChops.lighter, masks).reduce(_SMOOTH)
    soft = ImageChops.offset(whole, side // 100, side // 80).filter(ImageFilter.GaussianBlur(side / 120))
    picture.paste((24, 24, 40), (0, 0), soft.point([value * 2 // 5 for value in range(256)]).resize((side, side)))
