"""Decoding of images, common to packing, reading shards and serving.

Legend: H height, W width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ptmrec_dist.config import MAX_ASPECT_RATIO
from ptmrec_dist.errors import on_one_line

MISSING = "image file is missing"
"""Problem of an image path at which there is no file."""
_MAX_PIXELS = 100_000_000
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0
_GRAY_FOR_ONE_VALUE = 128


class BadImageError(Exception):
    """An image was refused.

    Args:
        problem: Kind of problem, a few words.
        detail: What was found.
    """

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(f"{problem}: {detail}")
        self.problem = problem
        self.detail = detail


@contextmanager
def decoded(
    source: str | Path | BinaryIO,
    *,
    max_pixels: int = _MAX_PIXELS,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
    formats: tuple[str, ...] | None = None,
    before: Callable[[Image.Image], None] | None = None,
) -> Iterator[Image.Image]:
    """Open an image, check its size by the header before memory is allocated for its pixels, and decode it.

    The aspect ratio bounds the memory needed after decoding: encoders scale the shorter side to S pixels, so an image of aspect
    ratio A becomes one of S * S * A pixels, however few it had.

    Args:
        source: Image file, or its bytes as a file.
        max_pixels: Largest number of pixels.
        max_aspect_ratio: Largest ratio of the longer side to the shorter.
        formats: Formats of PIL that are tried; by default all.
        before: Called with the image whose header was read, before it is decoded.

    Yields:
        The decoded image; the first frame, where there are several.

    Raises:
        BadImageError: Not an image, one beyond the limits, or any error while decoding it or in the `with` block.
    """
    if isinstance(source, str | Path) and not Path(source).is_file():  # opening a pipe would block
        raise BadImageError(MISSING, "no such file")
    with _refusing(max_pixels), Image.open(source, formats=formats) as image:
        _check_size(image, max_pixels, max_aspect_ratio)
        if before is not None:
            before(image)
        image.load()
        _check_size(image, max_pixels, max_aspect_ratio)  # some formats name the size of another frame
        yield image


@contextmanager
def _refusing(max_pixels: int) -> Iterator[None]:
    """Turn every error of PIL into the one that says what is wrong with the image."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("file is not an image", "unknown format") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError("image has too many pixels", f"more than {max_pixels:,}") from error
    except Exception as error:  # PIL's plugins raise all kinds of errors on damaged files
        raise BadImageError("image cannot be decoded", on_one_line(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a decoded image of any mode into an upright one in 8-bit RGB, with transparency blended onto white.

    Gray levels of more than 8 bits are scaled, never clipped: 16-bit levels by the largest that the file can hold (65535;
    in TIFF 2^BitsPerSample - 1), integers and floats of 32 bits so that the smallest value becomes black and the largest
    white (values that are not finite are black; an image of one value is mid-gray).

    Args:
        image: A decoded image; it is turned upright in place.

    Returns:
        An RGB image.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_gray_levels(image)).convert("RGB")
    if not image.has_transparency_data:
        return _as_mode(image, "RGB")
    straight = image.convert("LA") if image.mode == "La" else image  # PIL cannot convert premultiplied gray to RGBA
    rgba = _as_mode(straight, "RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert, without the copy that PIL makes of an image already in the mode."""
    return image if image.mode == mode else image.convert(mode)


def _gray_levels(image: Image.Image) -> np.ndarray:
    """Scale the one channel of an image to uint8 [H, W]."""
    values_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        levels_HW = _scaled(values_HW, 0, (1 << tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, which PIL holds in 32
        levels_HW = _scaled(values_HW, 0, 65535)
    else:
        finite = values_HW[np.isfinite(values_HW)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        levels_HW = _scaled(values_HW, low, high)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels_HW = 255 - levels_HW
    if "transparency" in image.info:
        levels_HW[values_HW == image.info["transparency"]] = 255
    return levels_HW


def _scaled(values_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.full(values_HW.shape, _GRAY_FOR_ONE_VALUE, dtype=np.uint8)
    # Row by row: a matrix of floats would take eight times the memory of the image.
    levels_HW = np.empty(values_HW.shape, dtype=np.uint8)
    for row_W, levels_W in zip(values_HW, levels_HW):
        scaled_W = (row_W.astype(np.float64) - low) * (255 / (high - low))
        levels_W[:] = np.nan_to_num(scaled_W, nan=0, posinf=0, neginf=0).clip(0, 255).round()
    return levels_HW


def _check_size(image: Image.Image, max_pixels: int, max_aspect_ratio: float) -> None:
    width, height = image.size
    found = f"{width} x {height} pixels"
    if min(width, height) < 1:
        raise BadImageError("image has no pixels", found)
    if width * height > max_pixels:
        raise BadImageError("image has too many pixels", f"{found}, more than {max_pixels:,}")
    if max(width, height) > max_aspect_ratio * min(width, height):
        raise BadImageError(
            "image is too long and thin", f"{found}, one side over {max_aspect_ratio:g} times the other"
        )
