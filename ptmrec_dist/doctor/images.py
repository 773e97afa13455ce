"""Checks of images: each is decoded once and described by a few bytes; images themselves are not kept in memory.

Near-duplicates are images whose gradients agree (the difference hash: is each of 8 x 8 cells brighter than the one to its
left?) and whose mean colours do, so that two colours of one product are not taken for each other.

Shape suffixes: N images, G images of one group.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from PIL import Image

from ptmrec_dist.data.catalogue import where_instead
from ptmrec_dist.data.decoding import MISSING, BadImageError, decoded, to_rgb
from ptmrec_dist.data.packing.images import Limits, start_worker
from ptmrec_dist.data.packing.workers import open_workers
from ptmrec_dist.doctor.findings import Finding, note_if_rare
from ptmrec_dist.doctor.kinds import Severity
from ptmrec_dist.files import sha256

_CHUNK = 64
_FEW = 512
"""Up to this many images are decoded in this process: others would take longer to start."""
_TIMEOUT = 3600.0
_MOST_BITS = 3
"""Cells in which near-duplicates differ at most: with four blocks of 16 bits, at least one block is equal (pigeonhole)."""
_MOST_COLOUR = 8
"""Levels of 255 by which their mean red, green and blue differ at most."""
_LEAST_STEP = 2
"""Levels by which a cell counts as brighter: noise of compression does not."""
_EXAMPLES = 3


class Look(NamedTuple):
    """What is known of one image."""

    problem: str
    """Kind of problem; empty if there is none."""
    detail: str
    """What was found instead of a valid image."""
    digest: str
    """sha256 of the file."""
    gradients: int
    """64 bits."""
    red: int
    """Mean levels."""
    green: int
    blue: int
    side: int
    """Pixels of the shorter side."""


def look_at(paths: Sequence[str], limits: Limits, workers: int | None) -> pl.DataFrame:
    """Decode images and describe them.

    Args:
        paths: Image files.
        limits: Limits of `ptmrec pack`.
        workers: Processes; by default as many as processors.

    Returns:
        A row for each path with the fields of `Look`.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    describe = partial(_describe, limits=limits)
    if len(paths) <= _FEW:
        looks = list(itertools.chain.from_iterable(map(describe, chunks)))
    else:
        with open_workers(workers, _TIMEOUT, start_worker, limits.pixels) as pool:
            looks = list(itertools.chain.from_iterable(pool.map(describe, chunks)))
    schema = {name: pl.String if kind is str else pl.UInt64 for name, kind in Look.__annotations__.items()}
    return pl.DataFrame(looks, schema=schema, orient="row")


def check_readable(rows: pl.DataFrame, where: str) -> Iterator[Finding]:
    """Find images of a catalogue that cannot be read.

    Args:
        rows: Rows with an image: `item_id`, `image`, `path`, and the columns of `Look`.
        where: What is examined.

    Yields:
        Findings.
    """
    for kind, bad in {
        "missing-images": pl.col("problem") == MISSING,
        "damaged-images": ~pl.col("problem").is_in(["", MISSING]),
    }.items():
        found = rows.filter(bad)
        if found.height:
            severity = Severity.ERROR if found.height == rows.height else None
            reasons = ", ".join(
                f"{count:,} {reason}" for reason, count in found["problem"].value_counts(sort=True).rows()
            )
            instead = where_instead(found) if kind == "missing-images" else ""
            counted = f"{found.height:,} of {rows.height:,} images: {reasons}{instead}"
            yield Finding(kind, where, counted, _paths(found), severity)


def check_images(items: pl.DataFrame, pixels: int, where: str) -> Iterator[Finding]:
    """Check the images of a catalogue that can be read.

    Args:
        items: Items with such an image: `item_id`, `path`, and the columns of `Look`.
        pixels: Pixels that the encoder takes; 0 where none was given.
        where: What is examined.

    Yields:
        Findings.
    """
    yield from _duplicates(items, where)
    small = items.filter(pl.col("side") < pixels)
    if small.height:
        found = f"{small.height:,} of {items.height:,} images have a side of less than the encoder's {pixels} pixels"
        yield Finding("small-images", where, found, _paths(small), note_if_rare(small.height, items.height))


def first_near_duplicates(gradients_N: np.ndarray, colours_N3: np.ndarray) -> np.ndarray:
    """Find for each image the first one before it that looks the same.

    Args:
        gradients_N: Difference hashes, uint64.
        colours_N3: Mean colours, int.

    Returns:
        Position of that image, or its own where there is none, int64 [N].
    """
    first_N = np.arange(len(gradients_N))
    for shift in (0, 16, 32, 48):
        block_N = (gradients_N >> np.uint64(shift)) & np.uint64(0xFFFF)
        order_N = np.argsort(block_N, kind="stable")
        starts = np.flatnonzero(np.diff(block_N[order_N])) + 1
        for group_G in np.split(order_N, starts):
            _compare_group(group_G, gradients_N, colours_N3, first_N)
    return first_N


def _compare_group(group_G: np.ndarray, gradients_N: np.ndarray, colours_N3: np.ndarray, first_N: np.ndarray) -> None:
    """Compare every image of a group with those after it, one row at a time, so that memory stays linear."""
    for position, image in enumerate(group_G[:-1]):
        later_G = group_G[position + 1 :]
        bits_G = np.bitwise_count(gradients_N[later_G] ^ gradients_N[image])
        colours_G = np.abs(colours_N3[later_G] - colours_N3[image]).max(axis=1)
        same_G = later_G[(bits_G <= _MOST_BITS) & (colours_G <= _MOST_COLOUR)]
        first_N[same_G] = np.minimum(first_N[same_G], image)


def _duplicates(items: pl.DataFrame, where: str) -> Iterator[Finding]:
    first = items.with_columns(original=pl.col("item_id").first().over("digest"))
    copies = first.filter(~pl.col("digest").is_first_distinct())
    if copies.height:
        found = f"{copies.height:,} of {items.height:,} items have the image of another item, byte for byte"
        severity = note_if_rare(copies.height, items.height)
        yield Finding("duplicate-images", where, found, _pairs(copies), severity)
    distinct = items.filter(pl.col("digest").is_first_distinct())
    colours_N3 = distinct.select("red", "green", "blue").cast(pl.Int64).to_numpy()
    first_N = first_near_duplicates(distinct["gradients"].to_numpy(), colours_N3)
    near = distinct.with_columns(original=distinct["item_id"].gather(first_N))
    near = near.filter(pl.col("original") != pl.col("item_id"))
    if near.height:
        found = f"{near.height:,} of {items.height:,} images look like that of another item, though their files differ"
        severity = note_if_rare(near.height, items.height)
        yield Finding("near-duplicate-images", where, found, _pairs(near), severity)


def _describe(paths: Sequence[str], limits: Limits) -> list[Look]:
    return [_look(path, limits) for path in paths]


def _look(path: str, limits: Limits) -> Look:
    try:
        with decoded(path, max_pixels=limits.pixels, max_aspect_ratio=limits.aspect_ratio) as image:
            rgb = to_rgb(image)
            gray = np.asarray(rgb.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
            red, green, blue = np.asarray(rgb.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist()
            bits = gray[:, 1:] > gray[:, :-1] + _LEAST_STEP
            gradients = int.from_bytes(np.packbits(bits).tobytes())
            return Look("", "", sha256(Path(path)), gradients, red, green, blue, min(rgb.size))
    except BadImageError as bad:
        return Look(bad.problem, bad.detail, "", 0, 0, 0, 0, 0)


def _paths(rows: pl.DataFrame) -> tuple[str, ...]:
    shown = rows.head(_EXAMPLES).select("item_id", "path", "detail").rows()
    return tuple(f"item {item!r}: {path}{f' ({detail})' if detail else ''}" for item, path, detail in shown)


def _pairs(rows: pl.DataFrame) -> tuple[str, ...]:
    return tuple(f"{item!r} as {other!r}" for item, other in rows.head(_EXAMPLES).select("item_id", "original").rows())
