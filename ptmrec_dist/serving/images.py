"""Images that come with requests, from people who are not to be trusted."""

import io

from PIL import Image, ImageOps

from ptmrec_dist.data.images import on_white
from ptmrec_dist.errors import UserError

MAX_IMAGE_PIXELS = 50_000_000


def read_image(data: bytes) -> Image.Image:
    """Read the image of a new item.

    Args:
        data: JPEG or PNG file.

    Returns:
        The image upright in RGB, transparency shown on white, as `ptmrec pack` stores images.

    Raises:
        UserError: Not such an image, or one that is too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        return on_white(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's plugins raise all kinds of errors on damaged files
        raise UserError(
            f"image: cannot be decoded ({error}); expected a JPEG or PNG of at most {MAX_IMAGE_PIXELS} pixels"
        ) from error
