"""Images that come with requests, from people who are not to be trusted."""

import base64
import io
import os
import time
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from PIL import Image

from ptmrec_dist.config import MAX_ASPECT_RATIO
from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from ptmrec_dist.errors import UserError

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 50_000_000
HOSTS_VARIABLE = "PTMREC_IMAGE_HOSTS"
"""Environment variable of the server: hosts (`img.example.org`, `cdn.example.org:8080`) that it may fetch images from,
separated by commas; by default none, for a server that fetches any address opens its own network to everyone."""

_SECONDS = 10.0
_PART_BYTES = 65536


def read_image(given: object) -> Image.Image:
    """Read the image of a new item.

    Args:
        given: JPEG or PNG in base64, or its URL at a host that `PTMREC_IMAGE_HOSTS` of the server names.

    Returns:
        The image as `to_rgb` makes it, as for the images that `ptmrec pack` stores.

    Raises:
        UserError: Not such an image, one that is too large or too long and thin, or a URL that is not allowed or does not
            answer.
    """
    limit = (
        f"expected a JPEG or PNG of at most {MAX_IMAGE_BYTES} bytes and {MAX_IMAGE_PIXELS} pixels, no side over "
        f"{MAX_ASPECT_RATIO} times the other, in base64"
    )
    text = given if isinstance(given, str) else ""
    is_url = text[:8].lower().startswith(("http://", "https://"))
    if not is_url and len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise UserError(f"image: got {len(text)} characters; {limit}")
    data = _fetch(text) if is_url else b""
    try:
        data = data or base64.b64decode(text, validate=True)
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"more than {MAX_IMAGE_BYTES} bytes")
        with decoded(io.BytesIO(data), max_pixels=MAX_IMAGE_PIXELS, formats=("JPEG", "PNG")) as image:
            return to_rgb(image)
    except (BadImageError, ValueError) as error:
        raise UserError(f"image: cannot be decoded ({error}); {limit}") from error


class _NoRedirects(HTTPRedirectHandler):
    """A host that is allowed must not send the server to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        return None


def _fetch(url: str) -> bytes:
    try:
        host = urlsplit(url).netloc.lower()
    except ValueError as error:
        raise UserError(f"image: got {url!r}, which is not a URL ({error}); send the image in base64") from error
    allowed = [name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]
    if host not in allowed:
        raise UserError(
            f"image: got a URL at {host!r}, which this server may not fetch; send the image in base64, or name the host "
            f"in the server's {HOSTS_VARIABLE}"
        )
    try:
        with build_opener(_NoRedirects).open(url, timeout=_SECONDS) as response:
            return _read_in_time(response)
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(f"image: cannot fetch {url!r} ({error}); send it in base64") from error


def _read_in_time(response: HTTPResponse) -> bytes:
    """Read a body; the socket's own timeout is one of each read, which a host that sends a byte at a time never reaches."""
    deadline, data = time.monotonic() + _SECONDS, bytearray()
    while len(data) <= MAX_IMAGE_BYTES and (part := response.read1(_PART_BYTES)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not sent within {_SECONDS:g} seconds")
        data += part
    return bytes(data)
