"""`manifest.json`: what a packed data set holds, so that readers can plan and check without opening a shard."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptmrec_dist.errors import UserError

SCHEMA_VERSION = 2
"""2 tells modalities and the size of images; 1 told only whether there are both."""
FILE_NAME = "manifest.json"


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
class Manifest:
    """What a packed data set holds and what it was made with."""

    schema_version: int
    """Version of the folder's format."""
    fingerprint: str
    """sha256 over the content, independent of paths and times."""
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
    """Pixels to which the shorter side of larger images was reduced; None without images, or where it is not known."""
    interactions: dict[str, int]
    """Part to number of interactions."""
    shards: tuple[Shard, ...]
    """Tar files in order; empty without content."""
    report: dict[str, Any]
    """Validation report: counts of what was read, kept and dropped, with examples."""

    @property
    def has_content(self) -> bool:
        """Whether there are images or texts."""
        return bool(self.modalities)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a packed data set.

        Args:
            folder: Packed data set.

        Returns:
            The manifest.

        Raises:
            UserError: No manifest, one that `ptmrec pack` did not write, or one of a newer version.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"shards: {folder} has no {FILE_NAME}; expected a folder that `ptmrec pack` wrote")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["schema_version"] > SCHEMA_VERSION:
                raise UserError(
                    f"shards: {path} has schema version {fields['schema_version']}, this program reads up to "
                    f"{SCHEMA_VERSION}; update ptmrec-dist or pack again"
                )
            if fields["schema_version"] < 2:
                fields["modalities"] = ("image", "text") if fields.pop("has_content") else ()
                fields["image_size"] = None
            fields["modalities"] = tuple(fields["modalities"])
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            manifest = cls(**fields)
            names = [*manifest.interactions, *(shard.name for shard in manifest.shards)]
            outside = [name for name in names if Path(name).name != name]
            if outside:
                raise ValueError(f"{outside[0]!r} is not the name of a file in it")
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"shards: {path} is not one that `ptmrec pack` wrote ({error!r}); pack again") from error

    def write(self, folder: Path) -> None:
        """Write the manifest, in one step.

        Args:
            folder: Packed data set.
        """
        fresh = folder / f".{FILE_NAME}.new"
        fresh.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(fresh, folder / FILE_NAME)
