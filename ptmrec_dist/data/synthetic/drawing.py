"""Pictures of products, drawn from a few attributes: the demo's product photographs.

Legend: N points of a line, each (x, y).
"""

import math
from collections.abc import Callable
from functools import cache, reduce

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ptmrec_dist.data.synthetic.products import COLOURS, CREAM, KINDS, PAINTS, SCENES, Colour, Look, Point, Shape

_INK = 222  # opacity of a pattern, of 255
_SMOOTH = 3  # pictures are drawn this many times larger and reduced, which smooths their edges


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
    leaf = _curve(((-6, 0), (-6, 0), (0, -3.4), (6, 0), (6, 0), (0, 3.4)), True)
    for row, y in enumerate(range(0, 126, 12)):
        for column in range(9):
            turn = math.radians(40 if (row + column) % 2 else -40)
            turned = leaf @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
            centred = (turned + np.array([column * 15 - 7 * (row % 2), y])) * unit
            draw.polygon([(a, b) for a, b in centred.tolist()], _INK)


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
        rng: Samples what differs between two products of the same look: position, scale, shade and pattern offset.

    Returns:
        An RGB picture of `size` x `size` pixels.
    """
    side = size * _SMOOTH
    base = _tone(COLOURS[look.colour], rng.uniform(1.03, 1.17))
    cloth = _cloth(look.pattern, base, side, rng)
    paints = PAINTS | {"trim": _tone(base, 0.8), "inside": _tone(base, 0.45)}
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
    ends = (nodes[-1:], nodes[:2]) if closed else (nodes[:1], nodes[-1:])
    nodes = np.concatenate([ends[0], nodes, ends[1]])
    before, start, end, after = (nodes[k : len(nodes) - 3 + k, None] for k in range(4))
    step = np.linspace(0, 1, 9)[None, :, None]
    line = start + step / 2 * (end - before)
    line = line + step**2 * (before - 2.5 * start + 2 * end - after / 2)
    line = line + step**3 * (1.5 * (start - end) + (after - before) / 2)
    return np.asarray(line[~np.all(start == end, axis=-1).ravel()].reshape(-1, 2))


def _masks(shapes: tuple[Shape, ...], side: int, rng: np.random.Generator) -> list[Image.Image]:
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
def _pattern_mask(pattern: str, side: int) -> Image.Image:
    """The pattern as a mask, white on black, a fifth larger than the picture: it is cropped at a random place."""
    sheet = Image.new("L", (round(side * 1.2),) * 2)
    PATTERNS[pattern](ImageDraw.Draw(sheet), side / 100)
    return sheet


def _cloth(pattern: str, base: Colour, side: int, rng: np.random.Generator) -> Image.Image:
    left, top = (int(shift) for shift in rng.integers(0, side // 5, 2))
    cloth = Image.new("RGB", (side, side), base)
    cloth.paste(CREAM, (0, 0), _pattern_mask(pattern, side).crop((left, top, left + side, top + side)))
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
