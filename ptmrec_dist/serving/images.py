"""Decoding of untrusted images in requests."""

import io

from PIL import Image

from ptmrec_dist.config import MAX_ASPECT_RATIO
from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from ptmrec_dist.errors import UserError

MAX_IMAGE_PIXELS = 50_000_000


def read_image(data: bytes) -> Image.Image:
    """Read the image of a new item.

    Args:
        data: JPEG or PNG file.

    Returns:
        The image as `to_rgb` makes it, as for the images that `ptmrec pack` stores.

    Raises:
        UserError: Not such an image, or one that is too large or too long and thin.
    """
    try:
        with decoded(io.BytesIO(data), max_pixels=MAX_IMAGE_PIXELS, formats=("JPEG", "PNG")) as image:
            return to_rgb(image)
    except BadImageError as bad:
        raise UserError(
            f"image: cannot be decoded ({bad}); expected a JPEG or PNG of at most {MAX_IMAGE_PIXELS} pixels, one side at "
            f"most {MAX_ASPECT_RATIO} times the other"
        ) from bad
