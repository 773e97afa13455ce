"""`manifest.json`: the content of a packed data set, so that readers can plan and check without opening a shard."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.files import parse_json, typed, write_atomically

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"
PARTS = ("train", "validation", "test", "cold_validation", "cold_test")
"""Names of the parts of the interactions."""
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Names of files: no path, and no URL either."""


@dataclass(frozen=True)
class Shard:
    """One tar file of a packed data set."""

    name: str
    """File name inside the data set's folder."""
    samples: int
    """Items in it."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Digest of the file."""


@dataclass(frozen=True)
class Source:
    """A packed data set that `ptmrec merge` made a part of this one."""

    name: str
    """Its name, and the prefix of its ids."""
    fingerprint: str
    """Fingerprint of its content."""
    seed: int
    """Seed of its split."""
    core: int
    """Its fewest interactions of a user and of an item."""
    num_users: int
    """Users, numbered after those of the sources before."""
    num_items: int
    """Items, numbered after those of the sources before."""
    interactions: dict[str, int]
    """Part to number of interactions."""


@dataclass(frozen=True)
class Members:
    """Users and items of a source of a merged data set."""

    users: range
    """User indices."""
    items: range
    """Item indices."""


@dataclass(frozen=True)
class Manifest:
    """Content of a packed data set, and the settings it was packed with."""

    schema_version: int
    """Version of the folder's format."""
    fingerprint: str
    """sha256 over the content, independent of paths, times, and the division into shards."""
    split: str
    """How the interactions were divided."""
    seed: int
    """Seed of the split and of the order of items in the shards."""
    core: int
    """Fewest interactions of a user and of an item; 0 if all were kept."""
    num_users: int
    """Users, numbered from 0."""
    num_items: int
    """Items, numbered from 0."""
    modalities: tuple[str, ...]
    """What items have: `image`, `text`, both, or nothing where interactions were packed alone."""
    image_size: int | None
    """Pixels to which the shorter side of larger images was reduced; None without images."""
    interactions: dict[str, int]
    """Part to number of interactions."""
    shards: tuple[Shard, ...]
    """Tar files in order; empty without content."""
    files: dict[str, str]
    """Each table to the sha256 of its file."""
    report: dict[str, Any]
    """Validation report: counts of what was read, kept and dropped, with examples; of a merged data set those of each
    source."""
    sources: tuple[Source, ...] = ()
    """What was merged, in the order of users and items; empty where `ptmrec pack` wrote it."""

    @property
    def has_content(self) -> bool:
        """Whether there are images or texts."""
        return bool(self.modalities)

    @property
    def ids(self) -> tuple[int, int] | None:
        """Least and greatest id of all items that were read, where they are row numbers and this was recorded."""
        match self.report:
            case {"items": {"ids": [int(least), int(greatest)]}}:
                return least, greatest
        return None

    @property
    def members(self) -> dict[str, Members]:
        """Name of each source to its users and items."""
        found, first_user, first_item = {}, 0, 0
        for source in self.sources:
            users = range(first_user, first_user := first_user + source.num_users)
            found[source.name] = Members(users, range(first_item, first_item := first_item + source.num_items))
        return found

    @property
    def layout(self) -> str:
        """Digest of how the items are divided into shards: the same content may be divided in many ways."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path, option: str = "shards") -> "Manifest":
        """Read the manifest of a packed data set.

        Args:
            folder: Packed data set.
            option: Option that names the folder, for messages.

        Returns:
            The manifest.

        Raises:
            UserError: The manifest is missing, was not written by `ptmrec pack`, or has another version.
        """
        path = folder / FILE_NAME
        if not folder.exists():
            raise UserError(f"{option}: no files at {folder}; expected a folder that `ptmrec pack` wrote")
        if not path.is_file():
            raise UserError(f"{option}: {folder} has no {FILE_NAME}; expected a folder that `ptmrec pack` wrote")
        try:
            fields = parse_json(path.read_text(encoding="utf-8"))
            _check_version(fields["schema_version"], path, option)
            manifest = typed(cls, fields)
            names = [*manifest.interactions, *(shard.name for shard in manifest.shards)]
            outside = [name for name in names if not _NAME.fullmatch(name)]
            if outside:
                raise ValueError(f"{outside[0]!r} is not the name of a file in it")
            if "train" not in manifest.interactions:
                raise ValueError("no interactions to train on")
            if manifest.sources:
                manifest._check_sources()
            return manifest
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{option}: {path} was not written by `ptmrec pack` ({on_one_line(error)}); give a packed data set, or pack "
                "again"
            ) from error

    def _check_sources(self) -> None:
        """Refuse sources that do not add up to the whole."""
        for name in ("num_users", "num_items"):
            numbers = [getattr(source, name) for source in self.sources]
            if min(numbers) < 0 or sum(numbers) != getattr(self, name):
                raise ValueError(f"sources have {numbers} {name}, the whole {getattr(self, name)}")

    def write(self, folder: Path) -> None:
        """Write the manifest atomically.

        Args:
            folder: Packed data set.
        """
        write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def item_digest(image_sha256: str, text: bytes) -> str:
    """Compute the digest of an item's content, independent of its shard.

    Args:
        image_sha256: Digest of its image file, in hexadecimal digits; that of no bytes where it has none.
        text: Its text in UTF-8, empty where it has none.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(image_sha256.encode() + text).hexdigest()


def _check_version(version: int, path: Path, option: str) -> None:
    if version != SCHEMA_VERSION:
        remedy = "remove the folder and pack again" if version < SCHEMA_VERSION else "update ptmrec-dist or pack again"
        raise UserError(f"{option}: {path} has schema version {version}, this program reads {SCHEMA_VERSION}; {remedy}")
