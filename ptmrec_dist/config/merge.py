"""Settings of `ptmrec merge`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ptmrec_dist.config.common import require

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge packed data sets into one, whose users and items keep their source, to pre-train on all of them."""

    leading: ClassVar[str] = "sources"
    """Setting that the first words of the command line give."""

    sources: tuple[Path, ...]
    """Packed data sets, two or more, before any option (`shards/films shards/books`, or `shards/films,shards/books`). Users of
    two sources are never the same, and neither are items."""
    names: tuple[str, ...] = ()
    """Names of the sources (`films,books`), which ids get as a prefix (`films:1`), by default those of the folders."""
    out: Path
    """Folder of the merged data set; must be new or contain a packed data set to replace."""

    def __post_init__(self) -> None:
        require(len(self.sources) >= 2, "sources", [str(path) for path in self.sources], "two packed data sets or more")
        fits = len(self.names) in (0, len(self.sources))
        require(fits, "names", list(self.names), f"a name for each of the {len(self.sources)} sources")
        names = self.source_names
        for name in names:
            expected = "names of letters, digits, _ and -; choose others by --names"
            require(_NAME.fullmatch(name) is not None, "names", name, expected)
        expected = "a different name for each source; choose others by --names"
        require(len(set(names)) == len(names), "names", list(names), expected)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Name of each source."""
        return self.names or tuple(path.resolve().name for path in self.sources)
