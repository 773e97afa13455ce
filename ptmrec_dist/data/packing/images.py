"""Images of a catalogue: fully decoded, checked and reduced once, in worker processes.

The bytes to store go to spool files (one for each chunk of images), so that nothing is decoded twice.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from ptmrec_dist.data.packing.workers import Pool
from ptmrec_dist.progress import Progress

_CHUNK = 64
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_QUALITY = 95


class Limits(NamedTuple):
    """Limits on an image, and the size at which it is stored."""

    shorter_side: int
    """Pixels to which the shorter side of a larger image is reduced."""
    pixels: int
    """Largest number of pixels of an image."""
    aspect_ratio: float
    """Largest ratio of the longer side to the shorter."""


class Prepared(NamedTuple):
    """One image: the position of its bytes in the spool, or the problem with it."""

    problem: str
    """Kind of problem; empty if there is none."""
    detail: str
    """What was found instead of a valid image."""
    spool: str
    """Spool file that holds the bytes."""
    offset: int
    """First byte in it."""
    size: int
    """Number of bytes."""
    sha256: str
    """Digest of the bytes."""


NO_IMAGE = Prepared(problem="", detail="", spool="", offset=0, size=0, sha256=hashlib.sha256().hexdigest())
"""Stands in for the image of an item that has none."""


def start_worker(max_pixels: int) -> None:
    """Set up a process that decodes images.

    Args:
        max_pixels: Images with more pixels are refused before they are decoded.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def prepare_images(pool: Pool, paths: Sequence[str], spool: Path, limits: Limits) -> list[Prepared]:
    """Check and reduce all images.

    Args:
        pool: Processes that ran `start_worker`.
        paths: Image files.
        spool: Folder for the spool files.
        limits: Limits on an image, and the size at which it is stored.

    Returns:
        One result for each path, in order.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    spools = [spool / f"{number:06d}" for number in range(len(chunks))]
    results: list[Prepared] = []
    with Progress(total=len(paths), desc="images", unit="image", disable=not paths) as bar:
        for prepared in pool.map(partial(_prepare_chunk, limits=limits), chunks, spools):
            results += prepared
            bar.update(len(prepared))
    return results


def prepare_image(path: str, limits: Limits) -> bytes:
    """Decode an image and return what to store for it.

    Args:
        path: Image file of any format that PIL reads; of several frames, the first is used.
        limits: Limits on the image, and the size at which it is stored.

    Returns:
        A JPEG: the file's own bytes where it is an upright RGB JPEG that is small enough, else a new one made from the
        result of `to_rgb`.

    Raises:
        BadImageError: The file is missing, is not an image, is beyond the limits, or cannot be decoded.
    """
    draft: _Draft | None = None

    def decode_reduced(image: Image.Image) -> None:
        nonlocal draft
        size = image.size
        found = image.draft(None, _stored_size(size, limits.shorter_side))
        if found is not None and image.size != size:
            draft = _Draft(_stored_size(size, limits.shorter_side), found[1])

    with decoded(path, max_pixels=limits.pixels, max_aspect_ratio=limits.aspect_ratio, before=decode_reduced) as image:
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        small = draft is None and min(image.size) <= limits.shorter_side
        if image.format == "JPEG" and image.mode == "RGB" and upright and small:
            return Path(path).read_bytes()
        buffer = io.BytesIO()
        reduced = _reduce(to_rgb(image), limits.shorter_side) if draft is None else to_rgb(draft.resize(image))
        reduced.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


class _Draft(NamedTuple):
    """A JPEG that is decoded at 1/2, 1/4 or 1/8 of its size, the smallest of these that is large enough."""

    stored: tuple[int, int]
    """Width and height at which it is stored."""
    box: tuple[float, float, float, float]
    """What the whole image is in the decoded one, whose sides are rounded up."""

    def resize(self, image: Image.Image) -> Image.Image:
        return image.resize(self.stored, Image.Resampling.BICUBIC, self.box)


def _reduce(image: Image.Image, shorter_side: int) -> Image.Image:
    stored = _stored_size(image.size, shorter_side)
    return image if stored == image.size else image.resize(stored, Image.Resampling.BICUBIC)


def _stored_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Width and height at which an image is stored."""
    shorter = min(size)
    if shorter <= shorter_side:
        return size
    width, height = (max(1, round(side * shorter_side / shorter)) for side in size)
    return width, height


def _prepare_chunk(paths: Sequence[str], spool: Path, limits: Limits) -> list[Prepared]:
    results = []
    with spool.open("wb") as file:
        for path in paths:
            problem, detail, data = "", "", b""
            try:
                data = prepare_image(path, limits)
            except BadImageError as bad:
                problem, detail = bad.problem, bad.detail
            digest = hashlib.sha256(data).hexdigest()
            results.append(Prepared(problem, detail, spool.name, file.tell(), len(data), digest))
            file.write(data)
    return results
