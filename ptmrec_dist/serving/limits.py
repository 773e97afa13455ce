"""Limits of a request, so that no single one can occupy or exhaust a server."""

import os
from dataclasses import dataclass, fields

from ptmrec_dist.errors import UserError

PREFIX = "PTMREC_MAX_"


@dataclass(frozen=True)
class Limits:
    """Limits of one request. Each is set by an environment variable of the server, `PTMREC_MAX_` and its name."""

    rows: int = 10_000
    """Rows of a request."""
    recommendations: int = 100_000
    """Rows times `top_k`."""
    history: int = 10_000
    """Items of one history."""
    listed_items: int = 100_000
    """Entries of `items`, of `exclude` and of `filters`."""
    new_items: int = 256
    """Distinct new items, each of which is encoded."""
    text_characters: int = 20_000
    """Characters of one text."""
    image_bytes: int = 10_000_000
    """Bytes of one image file."""
    total_image_bytes: int = 100_000_000
    """Bytes of all image files of a request."""
    fetch_seconds: int = 20
    """Seconds that fetching all images of a request may take."""
    request_bytes: int = 200_000_000
    """Bytes of a request's body (`ptmrec serve` only; `mlflow models serve` has no such limit)."""

    @classmethod
    def from_environment(cls) -> "Limits":
        """Read the limits that the environment sets; the others keep their defaults.

        Returns:
            The limits.

        Raises:
            UserError: A variable that is not a whole number of 1 or more.
        """
        names = [item.name for item in fields(cls) if variable(item.name) in os.environ]
        return cls(**{name: _positive(variable(name)) for name in names})

    def check(self, name: str, got: int, where: str) -> None:
        """Refuse a request beyond a limit.

        Args:
            name: Name of the limit.
            got: Requested amount.
            where: Part of the request, and its unit, for the message: `rows`.

        Raises:
            UserError: More than the limit.
        """
        limit = getattr(self, name)
        if got > limit:
            raise UserError(
                f"{where}: got {got}, expected at most {limit}; request less at a time, or set {variable(name)} in the "
                "server's environment"
            )


def variable(name: str) -> str:
    """Name the environment variable of a limit.

    Args:
        name: Field of `Limits`.

    Returns:
        `PTMREC_MAX_ROWS` for `rows`.
    """
    return PREFIX + name.upper()


def _positive(name: str) -> int:
    given = os.environ[name].strip()
    if not (given.isascii() and given.isdigit() and len(given) < 19 and int(given) > 0):
        raise UserError(f"{name}: got {given[:40]!r}, expected a whole number of 1 or more")
    return int(given)
