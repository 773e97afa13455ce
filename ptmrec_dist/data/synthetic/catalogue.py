"""A synthetic catalogue: products with pictures and generic captions, and users whose preferences the captions do not cover.

The captions name a product's kind and colour. Users choose mainly by the scene that the product is shown in, and a
little by its pattern. No text mentions either: an encoder trained only to match captions has no reason to encode
them, and only the interactions reveal them.

Legend: U users, I items.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from ptmrec_dist.data.synthetic.drawing import PATTERNS, draw_product
from ptmrec_dist.data.synthetic.products import COLOURS, KINDS, SCENES, Look
from ptmrec_dist.progress import Progress

ITEMS_FILE = "items.csv"
INTERACTIONS_FILE = "interactions.csv"
_VALUES: dict[str, Sequence[str]] = {
    "kind": tuple(KINDS),
    "colour": tuple(COLOURS),
    "pattern": tuple(PATTERNS),
    "scene": tuple(SCENES),
}
_WEIGHTS = {"kind": 1.0, "colour": 0.7, "pattern": 0.7, "scene": 2.0}  # weight of each attribute in a user's utility
_POPULARITY = 0.5  # spread of popularity among items of the same look
_TEMPLATES = ("a {colour} {kind}", "{kind} in {colour}", "{colour} {kind} for every day", "our {kind}, {colour}")
_PICTURE_SIZE = 160  # pixels
_YEAR_START, _YEAR = 1_750_000_000, 31_536_000  # seconds


def generate_catalogue(folder: Path, *, num_items: int, num_users: int, seed: int) -> None:
    """Generate a catalogue with pictures, and sample the interactions of its users.

    Writes `items.csv` (item_id, title, text, image), `images/` and `interactions.csv` (user_id, item_id, timestamp).

    Args:
        folder: Folder to write into; made where it is absent.
        num_items: Items I of the catalogue.
        num_users: Users U.
        seed: The same seed generates the same data.
    """
    rng = np.random.default_rng(seed)
    looks = _sample_looks(num_items, rng)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, look in enumerate(Progress(looks, desc="generate the catalogue", unit="item"), start=1):
        name = f"images/{number:04d}.jpg"
        draw_product(look, _PICTURE_SIZE, rng).save(folder / name, quality=92)
        title = f"{look.colour} {look.kind}".capitalize()
        rows.append({"item_id": f"{number:04d}", "title": title, "text": _caption(look, rng), "image": name})
    pl.DataFrame(rows).write_csv(folder / ITEMS_FILE)
    _sample_interactions(looks, num_users, rng).write_csv(folder / INTERACTIONS_FILE)


def generate_pairs(count: int, *, size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Generate pictures with generic captions, to train an image-text encoder on.

    Args:
        count: Pairs N.
        size: Side of a picture in pixels.
        seed: The same seed generates the same pairs.

    Returns:
        Pictures uint8 [N, 3, size, size] and N captions.
    """
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, 3, size, size), np.uint8)
    captions = []
    for row, look in enumerate(Progress(_sample_looks(count, rng), desc="generate pairs", unit="pair")):
        pictures[row] = np.asarray(draw_product(look, size, rng)).transpose(2, 0, 1)
        captions.append(_caption(look, rng))
    return pictures, captions


def _sample_looks(count: int, rng: np.random.Generator) -> list[Look]:
    columns = {name: rng.choice(values, count) for name, values in _VALUES.items()}
    return [Look(**{name: str(column[row]) for name, column in columns.items()}) for row in range(count)]


def _caption(look: Look, rng: np.random.Generator) -> str:
    return str(rng.choice(_TEMPLATES)).format(kind=look.kind, colour=look.colour)


def _sample_interactions(looks: Sequence[Look], num_users: int, rng: np.random.Generator) -> pl.DataFrame:
    """Sample items from a softmax over utilities without replacement (the Gumbel trick), in random order of time."""
    utility_UI = rng.gumbel(size=(num_users, len(looks))) + _POPULARITY * rng.normal(size=len(looks))
    for name, values in _VALUES.items():
        taste_UV = _WEIGHTS[name] * rng.normal(size=(num_users, len(values)))
        utility_UI += taste_UV[:, [values.index(asdict(look)[name]) for look in looks]]
    order_UI = np.argsort(-utility_UI, axis=1)
    rows = []
    for user, order in enumerate(order_UI, start=1):
        taken = rng.permutation(order[: rng.integers(12, 24)])
        times = np.sort(rng.integers(_YEAR_START, _YEAR_START + _YEAR, len(taken)))
        rows += [(f"{user:04d}", f"{item + 1:04d}", int(time)) for item, time in zip(taken, times, strict=True)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
