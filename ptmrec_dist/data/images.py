"""Images: decoded for real, checked and reduced once, in worker processes.

What is to be stored goes to spool files (one for each chunk of images), so that nothing is decoded twice.
"""

import io
import signal
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from ptmrec_dist.data.workers import Pool

MISSING = "image file is missing"
_CHUNK = 64
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_QUALITY = 95


class Prepared(NamedTuple):
    """One image: where its bytes lie in the spool, or what is wrong with it."""

    problem: str
    """Kind of problem; empty if there is none."""
    detail: str
    """What was found in place of an image."""
    spool: str
    """Spool file that holds the bytes."""
    offset: int
    """First byte in it."""
    size: int
    """Number of bytes."""


def start_worker(max_pixels: int) -> None:
    """Set up a process that decodes images.

    Args:
        max_pixels: Images with more pixels are refused before they are decoded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def prepare_images(pool: Pool, paths: Sequence[str], spool: Path, shorter_side: int) -> list[Prepared]:
    """Check and reduce all images.

    Args:
        pool: Processes that ran `start_worker`.
        paths: Image files.
        spool: Folder for the spool files.
        shorter_side: Pixels to which the shorter side of larger images is reduced.

    Returns:
        One result for each path, in order.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    spools = [spool / f"{number:06d}" for number in range(len(chunks))]
    results: list[Prepared] = []
    with tqdm(total=len(paths), desc="images", unit="image") as bar:
        for prepared in pool.map(partial(_prepare_chunk, shorter_side=shorter_side), chunks, spools):
            results += prepared
            bar.update(len(prepared))
    return results


def prepare_image(path: str, shorter_side: int) -> bytes:
    """Decode an image and return what to store for it.

    Args:
        path: Image file of any format that PIL reads.
        shorter_side: Pixels to which the shorter side of a larger image is reduced.

    Returns:
        A JPEG: the file's own bytes where it is an upright RGB JPEG that is small enough, else a new one that is turned
        upright, with transparency shown on white.

    Raises:
        Exception: Whatever PIL raises for a file that it cannot decode.
    """
    with Image.open(path) as image:
        image.load()
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        if image.format == "JPEG" and image.mode == "RGB" and upright and min(image.size) <= shorter_side:
            return Path(path).read_bytes()
        buffer = io.BytesIO()
        _reduce(on_white(ImageOps.exif_transpose(image)), shorter_side).save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """Turn any image into RGB, showing transparency on white.

    Args:
        image: Any PIL image.

    Returns:
        An RGB image of the same size.
    """
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _reduce(image: Image.Image, shorter_side: int) -> Image.Image:
    shorter = min(image.size)
    if shorter <= shorter_side:
        return image
    width, height = (max(1, round(side * shorter_side / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _prepare_chunk(paths: Sequence[str], spool: Path, shorter_side: int) -> list[Prepared]:
    results = []
    with spool.open("wb") as file:
        for path in paths:
            problem, detail, data = "", "", b""
            try:
                data = prepare_image(path, shorter_side)
            except (FileNotFoundError, IsADirectoryError):
                problem, detail = MISSING, "no such file"
            except UnidentifiedImageError:
                problem, detail = "file is not an image", "no format that is known"
            except (Image.DecompressionBombWarning, Image.DecompressionBombError):
                problem, detail = "image has too many pixels", f"more than {Image.MAX_IMAGE_PIXELS:,}"
            except Exception as error:  # PIL's plugins raise all kinds of errors on damaged files
                problem, detail = "image cannot be decoded", str(error)
            results.append(Prepared(problem, detail, spool.name, file.tell(), len(data)))
            file.write(data)
    return results
