"""Bytes of the images in a request: sent in base64, or fetched from a URL at an allowed host."""

import asyncio
import base64
import binascii
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.fetching import fetch, host_of, is_allowed, open_session
from ptmrec_dist.serving.limits import Limits, variable

if TYPE_CHECKING:
    from yarl import URL

HOSTS_VARIABLE = "PTMREC_IMAGE_HOSTS"
"""Environment variable of the server: hosts (`img.example.org`, `cdn.example.org:8080`) that it may fetch images from,
separated by commas; none by default, since a server that fetches any address exposes its own network."""


class ImageSource:
    """Reads the images of one request under its common limits on bytes and seconds.

    Args:
        limits: Limits of the request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._seconds = float(limits.fetch_seconds)

    def read(self, given: object) -> bytes:
        """Read one image file.

        Args:
            given: The file in base64, or its URL at a host listed in the server's `PTMREC_IMAGE_HOSTS`.

        Returns:
            The encoded file.

        Raises:
            UserError: Neither of them, a file beyond the limits, or a URL that is not allowed or does not respond in time.
        """
        if not isinstance(given, str):
            raise UserError(f"image: got {type(given).__name__}, expected the file in base64")
        data = self._fetch(given) if given[:8].lower().startswith(("http://", "https://")) else self._decode(given)
        self._bytes += len(data)
        self._limits.check("total_image_bytes", self._bytes, "bytes of all images")
        return data

    def _decode(self, text: str) -> bytes:
        self._limits.check("image_bytes", len(text) * 3 // 4 - 2, "bytes of an image")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"image: cannot be decoded ({error}); expected the file in base64") from error

    def _fetch(self, given: str) -> bytes:
        url = _allowed(given)
        started = time.monotonic()
        try:
            if self._seconds <= 0:
                raise TimeoutError
            # In a separate thread: the caller's may already run an event loop, as in a notebook.
            with ThreadPoolExecutor(1) as pool:
                work = pool.submit(asyncio.run, _download(url, self._seconds, self._limits.image_bytes))
                data = work.result()
        except TimeoutError as error:
            raise UserError(
                f"image: {_shown(given)} did not arrive within {self._limits.fetch_seconds} seconds for all images of a "
                f"request; send it in base64, or set {variable('fetch_seconds')} in the server's environment"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"image: cannot fetch {_shown(given)} ({on_one_line(error)}); send it in base64") from error
        finally:
            self._seconds -= time.monotonic() - started
        self._limits.check("image_bytes", len(data), "bytes of an image")
        return data


def _allowed(given: str) -> "URL":
    """Parse a URL with the client's own parser, so that both see the same host, and refuse hosts that are not listed."""
    from yarl import URL

    try:
        url = URL(given)
        host = host_of(url)
    except ValueError as error:
        raise UserError(f"image: got {_shown(given)} ({error}); expected a URL, or the file in base64") from error
    allowed = [name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]
    if not is_allowed(url, allowed):
        raise UserError(
            f"image: got a URL at {host!r}, which this server may not fetch; send the image in base64, or name the host "
            f"in the server's {HOSTS_VARIABLE}"
        )
    return url


async def _download(url: "URL", seconds: float, most: int) -> bytes:
    async with open_session(seconds) as session:
        return await fetch(session, url, most)


def _shown(given: str) -> str:
    return repr(given if len(given) <= 200 else given[:200] + "…")
