"""Files from web servers: from listed hosts alone, within limits of bytes and of seconds.

A host that is not listed is never requested, whatever a URL or a redirect says: a program that fetches any address exposes
its own network.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

from ptmrec_dist.errors import on_one_line

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from yarl import URL

_CHUNK = 65536  # bytes
_REDIRECTS = (301, 302, 303, 307, 308)


class StatusError(ValueError):
    """A server does not send the file.

    Args:
        status: HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")


class RedirectError(StatusError):
    """A server names another URL for the file.

    Args:
        status: HTTP status.
        location: That URL, as the server wrote it.
    """

    def __init__(self, status: int, location: str) -> None:
        super().__init__(status)
        self.location = location


def host_of(url: "URL") -> str:
    """Return the host of a URL.

    Args:
        url: The URL, parsed by the client's own parser, so that both see the same host.

    Returns:
        `img.example.org`, or `img.example.org:8080` where it names a port, in lower case; empty if it has none.
    """
    host = url.raw_host or ""
    return host.lower() if url.explicit_port is None else f"{host}:{url.explicit_port}".lower()


def is_allowed(url: "URL", hosts: Collection[str]) -> bool:
    """Return whether a URL may be fetched.

    Args:
        url: The URL.
        hosts: Hosts as `host_of` writes them.

    Returns:
        Whether it is at one of the hosts, by HTTP or HTTPS, without a user name and password.
    """
    anonymous = url.raw_user is None and url.raw_password is None
    return url.scheme in ("http", "https") and bool(url.raw_host) and anonymous and host_of(url) in hosts


def open_session(seconds: float) -> "ClientSession":
    """Make a client; use it in an `async with` block.

    Args:
        seconds: Most seconds of one file: of host lookup, handshake, headers and body together, however slowly they arrive.

    Returns:
        The client.
    """
    from aiohttp import ClientSession, ClientTimeout

    headers = {"Accept-Encoding": "identity", "User-Agent": "ptmrec-dist"}
    return ClientSession(timeout=ClientTimeout(total=seconds), auto_decompress=False, headers=headers)


async def fetch(session: "ClientSession", url: "URL", most: int) -> bytes:
    """Fetch a file. Redirects are not followed: the caller decides about their host.

    Args:
        session: What `open_session` returned.
        url: URL that is allowed.
        most: Bytes; of a larger file, up to one chunk more are returned.

    Returns:
        The file.

    Raises:
        RedirectError: The server names another URL.
        StatusError: Any other HTTP status than 200.
        OSError: No connection, or one that broke.
        TimeoutError: It did not arrive within the session's seconds.
    """
    from aiohttp import ClientError

    proxy = None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
    try:
        async with session.get(url, allow_redirects=False, proxy=proxy) as response:
            if response.status in _REDIRECTS:
                raise RedirectError(response.status, response.headers.get("Location", ""))
            if response.status != 200:
                raise StatusError(response.status)
            data = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                data += chunk
                if len(data) > most:
                    break
            return bytes(data)
    except TimeoutError:
        raise
    except ClientError as error:
        raise OSError(on_one_line(error)) from error
