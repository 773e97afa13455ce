"""What an importer is: the files it reads, and what a row of them says about an item or about an interaction."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ptmrec_dist.data.importers.rows import Row, TextFormat, Unreadable, read_rows
from ptmrec_dist.data.tables.compression import without_compression
from ptmrec_dist.errors import UserError


@dataclass(frozen=True)
class Item:
    """An item of the catalogue."""

    item_id: str
    """Its id."""
    title: str
    """Its title."""
    text: str
    """Title, description and other text, joined."""
    image: str = ""
    """Path of its image, relative to the source; empty without one."""
    image_url: str = ""
    """Address of its image, where that is all there is."""
    category: str = ""
    """Its category."""
    image_bytes: bytes | None = None
    """Its image, where it is part of the row."""


@dataclass(frozen=True)
class Interaction:
    """A row of the log. Values are kept as they are written: `ptmrec pack` reads and checks them."""

    user_id: str
    """Id of the user."""
    item_id: str
    """Id of the item."""
    rating: str = ""
    """Rating, where the log has one."""
    timestamp: str = ""
    """Time, where the log has one."""
    x_label: str = ""
    """Part of the split that came with the data."""


class Importer(ABC):
    """Reads one published data set.

    Args:
        folder: Where its files are.

    Raises:
        UserError: A file is missing.
    """

    catalogue: ClassVar[tuple[str, ...]]
    """Patterns of the files with items; those of the first pattern that matches are read."""
    log: ClassVar[tuple[str, ...]]
    """Patterns of the files with interactions, as for `catalogue`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.item_files = self.find(self.catalogue) if self.catalogue else []
        self.log_files = self.find(self.log)

    def find(self, patterns: Iterable[str], required: bool = True) -> list[Path]:
        """Find files.

        Args:
            patterns: Patterns relative to the folder, best first.
            required: Whether there must be some.

        Returns:
            The files that match the first pattern that matches any.

        Raises:
            UserError: There are none, but must be.
        """
        for pattern in patterns:
            found = sorted(path for path in self.folder.glob(pattern) if path.is_file())
            if found:
                return found
        if not required:
            return []
        raise UserError(f"source: {self.folder} has no file {' or '.join(patterns)}; give the folder of the data set")

    def text_format(self, path: Path) -> TextFormat:
        """Return how the lines of a text file are divided: by default as CSV or TSV with a header.

        Args:
            path: The file.

        Returns:
            The format.
        """
        return TextFormat("\t" if without_compression(path.name).endswith((".tsv", ".inter", ".item")) else ",")

    def items(self) -> Iterator[Item | Unreadable]:
        """Yield the items, or why a row is none."""
        for path in self.item_files:
            for row in read_rows(path, self.text_format(path)):
                yield row if isinstance(row, Unreadable) else self.item(row)

    def interactions(self) -> Iterator[Interaction | Unreadable]:
        """Yield the interactions, or why a row is none."""
        for path in self.log_files:
            for row in read_rows(path, self.text_format(path)):
                yield row if isinstance(row, Unreadable) else self.interaction(row)

    def arrays(self) -> dict[str, Path]:
        """Return the features of items that came with the data set.

        Returns:
            Modality to file.
        """
        return {}

    @abstractmethod
    def item(self, row: Row) -> Item | Unreadable:
        """Read an item.

        Args:
            row: A row of a file of the catalogue.

        Returns:
            The item, or why the row is none.
        """

    @abstractmethod
    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read an interaction.

        Args:
            row: A row of a file of the log.

        Returns:
            The interaction, or why the row is none.
        """

    def existing(self, *paths: str) -> str:
        """Return the first path that is a file.

        Args:
            *paths: Paths relative to the folder.

        Returns:
            One of them, or empty text.
        """
        return next((path for path in paths if os.path.isfile(self.folder / path)), "")


def flat(*values: Any) -> str:
    """Join values to one text.

    Args:
        *values: Texts, numbers, or lists of them of any depth; None is nothing.

    Returns:
        Their words, separated by single blanks.
    """
    words: list[str] = []
    for value in values:
        if isinstance(value, list | tuple):
            words.append(flat(*value))
        elif value is not None:
            words.append(str(value))
    return " ".join(" ".join(words).split())
