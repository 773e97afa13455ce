"""Settings of `ptmrec download`."""

from dataclasses import dataclass, field
from pathlib import Path

from ptmrec_dist.config.common import require, require_timeout
from ptmrec_dist.config.pattern import Pattern, is_pattern


@dataclass(frozen=True, kw_only=True)
class DownloadColumnsConfig:
    """Names of the catalogue's columns; in a table without a header their numbers, from 1."""

    item: str = "item_id"
    """Item id."""
    image_url: str = "image_url"
    """URL of the image; of a list of them the first."""
    image: str | None = None
    """Path of the image below `--out`: a column, or a pattern such as `'{item_id:.3}/{item_id}.jpg'`; by default the item
    id."""

    def __post_init__(self) -> None:
        if self.image is not None and is_pattern(self.image):
            Pattern.parse(self.image, "columns.image")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch the images of a catalogue's URLs into files that `ptmrec pack` reads."""

    items: Path
    """Catalogue with a column of URLs, in any of the formats that `ptmrec pack` reads."""
    out: Path
    """Folder of the images. What it has is not fetched again, so the same command resumes after an interruption."""
    columns: DownloadColumnsConfig = field(default_factory=DownloadColumnsConfig)
    """Column names."""
    separator: str | None = None
    """Column separator of a text table; by default implied by the file name."""
    header: bool = True
    """Whether the first row of a text table names the columns."""
    hosts: tuple[str, ...] = ()
    """Hosts to fetch from: `img.example.org,cdn.example.org:8080`. No other is requested, also not where one of these redirects
    to it. Without any, the catalogue's hosts are listed and nothing is fetched."""
    max_bytes: int = 10_000_000
    """Largest file in bytes."""
    rate: float = 10.0
    """Most requests per second."""
    connections: int = 8
    """Most requests at the same time."""
    timeout: float = 30.0
    """Most seconds of one request."""

    def __post_init__(self) -> None:
        require(self.max_bytes >= 1, "max_bytes", self.max_bytes, "1 or more")
        require(self.rate > 0, "rate", self.rate, "more than 0 requests per second")
        require(self.connections >= 1, "connections", self.connections, "1 or more")
        require_timeout(self.timeout)
        whole = [host for host in self.hosts if not host.strip() or "/" in host or "@" in host]
        require(not whole, "hosts", whole[0] if whole else None, "names of hosts alone: img.example.org")
