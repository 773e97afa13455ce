"""Images from the web to files: a few at a time, at a limited rate, each checked before it is written."""

import asyncio
import errno
import io
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptmrec_dist.data.decoding import BadImageError, decoded
from ptmrec_dist.errors import fault_of, on_one_line
from ptmrec_dist.fetching import RedirectError, StatusError, fetch, is_allowed, open_session
from ptmrec_dist.files import replacing
from ptmrec_dist.progress import Progress

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from yarl import URL

_MOST_REDIRECTS = 5
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""Errors of a path rather than of the disk, which would meet every image."""


@dataclass(frozen=True)
class WebLimits:
    """What may be requested, and how much of it."""

    hosts: Collection[str]
    """Hosts that may be requested."""
    bytes: int
    """Largest file in bytes."""
    seconds: float
    """Most seconds of one request."""
    rate: float
    """Most requests per second."""
    connections: int
    """Most requests at the same time."""


def fetch_images(urls: Sequence["URL"], paths: Sequence[Path], limits: WebLimits) -> list[tuple[str, str]]:
    """Fetch images and write them to files, each atomically.

    Args:
        urls: URLs that are allowed.
        paths: File of each, distinct; its folder is made.
        limits: What may be requested, and how much of it.

    Returns:
        Kind of problem and what was found for each image, in order; two empty texts if it was written.

    Raises:
        Fault: The disk does not take the files.
    """
    return asyncio.run(_Images(limits).fetch_all(urls, paths))


class _Images:
    def __init__(self, limits: WebLimits) -> None:
        self._limits = limits
        self._next = 0.0
        self._one_at_a_time = ThreadPoolExecutor(1)  # bounds the memory that decoding takes

    async def fetch_all(self, urls: Sequence["URL"], paths: Sequence[Path]) -> list[tuple[str, str]]:
        problems = [("", "")] * len(urls)
        waiting = iter(enumerate(zip(urls, paths, strict=True)))
        with self._one_at_a_time, Progress(total=len(urls), desc="images", unit="image") as bar:
            async with open_session(self._limits.seconds) as session:
                work = [self._work(session, waiting, problems, bar) for _ in range(self._limits.connections)]
                await asyncio.gather(*work)
        return problems

    async def _work(
        self,
        session: "ClientSession",
        waiting: Iterator[tuple[int, tuple["URL", Path]]],
        problems: list[tuple[str, str]],
        bar: Progress,
    ) -> None:
        for number, (url, path) in waiting:
            try:
                data = await self._fetched(session, url)
                await asyncio.get_running_loop().run_in_executor(self._one_at_a_time, _keep, data, path)
            except BadImageError as bad:
                problems[number] = bad.problem, bad.detail
            bar.update()

    async def _fetched(self, session: "ClientSession", url: "URL") -> bytes:
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                await self._turn()
                try:
                    data = await fetch(session, url, self._limits.bytes)
                except RedirectError as redirect:
                    url = self._redirected(url, redirect)
                else:
                    break
            else:
                raise BadImageError("too many redirects", f"more than {_MOST_REDIRECTS}")
        except TimeoutError as error:
            raise BadImageError("no image in time", f"more than {self._limits.seconds:g} seconds") from error
        except OSError as error:
            raise BadImageError("connection failed", on_one_line(error)) from error
        except StatusError as error:
            raise BadImageError(str(error), "no image") from error
        except ValueError as error:
            raise BadImageError("URL cannot be requested", on_one_line(error)) from error
        if len(data) > self._limits.bytes:
            raise BadImageError("file is too large", f"more than {self._limits.bytes:,} bytes")
        return data

    def _redirected(self, url: "URL", redirect: RedirectError) -> "URL":
        from yarl import URL

        target = url.join(URL(redirect.location))
        if not is_allowed(target, self._limits.hosts):
            raise BadImageError("redirected to a host that is not in --hosts", str(target)[:200])
        return target

    async def _turn(self) -> None:
        """Wait until the rate permits another request."""
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next)
        self._next = turn + 1 / self._limits.rate
        await asyncio.sleep(turn - now)


def _keep(data: bytes, path: Path) -> None:
    """Write an image, if it is one: servers also send pages that say why there is none."""
    with decoded(io.BytesIO(data)):
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            fresh.write_bytes(data)
    except ValueError as error:
        raise BadImageError("file name cannot be used", on_one_line(error)) from error
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise BadImageError("file name cannot be used", str(error.strerror)) from error
        raise fault_of(error, f"writing {path}") from error
