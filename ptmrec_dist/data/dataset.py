"""The read side of a packed data set: cheap to open; columns are read on first access.

Shape suffixes: E interactions, I items, U users.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ptmrec_dist.data.catalogue import ATTRIBUTE
from ptmrec_dist.data.manifest import Manifest
from ptmrec_dist.data.tables.parquet import parquet_columns, read_parquet
from ptmrec_dist.errors import Fault, UserError, first_line

TEST_PARTS = ("test", "cold_test")


@dataclass(frozen=True)
class Interactions:
    """User-item interactions, as two parallel columns."""

    users: np.ndarray
    """User indices, int64 [E]."""
    items: np.ndarray
    """Item indices, int64 [E]."""


class Dataset:
    """A packed data set, opened for reading.

    Args:
        folder: Folder that `ptmrec pack` wrote.
        with_test: Whether the test split can be read; without it, its files are not needed.
        option: Option that names the folder, for messages.

    Raises:
        UserError: The folder is missing, is not a packed data set, has a newer format, or lacks files.
    """

    def __init__(self, folder: Path, with_test: bool = True, option: str = "shards") -> None:
        self.folder, self._option = folder, option
        self.manifest = Manifest.read(folder, option)
        self.num_users = self.manifest.num_users
        self.num_items = self.manifest.num_items
        self.fingerprint = self.manifest.fingerprint
        self.sources = self.manifest.members
        """Name of each source to its users and items; empty unless `ptmrec merge` wrote the data set."""
        self.parts: tuple[str, ...] = tuple(
            part
            for part, count in self.manifest.interactions.items()
            if count > 0 and (with_test or part not in TEST_PARTS)
        )
        self._check_files()

    def require(self, *parts: str) -> None:
        """Refuse a data set that lacks a part which a command needs.

        Args:
            *parts: Names of the parts.

        Raises:
            UserError: The data set has no such interactions.
        """
        missing = [part for part in parts if part not in self.parts]
        if missing:
            raise UserError(
                f"{self._option}: {self.folder} has no {' and no '.join(missing)} interactions, only {', '.join(self.parts)}; "
                "pack users with 3 interactions or more, or with another --split"
            )

    def interactions(self, part: str) -> Interactions:
        """Read the interactions of one part.

        Args:
            part: `train`, `validation`, `test`, and where the split has cold items `cold_validation`, `cold_test`.

        Returns:
            User and item indices, int64 [E] each, in the order in which they were packed.

        Raises:
            UserError: The data set has no such part, or the file does not match the manifest.
            Fault: The file cannot be read.
        """
        if part not in self.parts:
            raise UserError(f"part: got {part!r}, but {self.folder} has {', '.join(self.parts)}")
        table = self._read(f"interactions/{part}", ["user_index", "item_index"])
        # Writable copies: torch.from_numpy warns about arrays that it may not write to.
        return Interactions(table["user_index"].to_numpy(writable=True), table["item_index"].to_numpy(writable=True))

    def table(self, part: str) -> pl.DataFrame:
        """Read the interactions of one part with all that is known of them.

        Args:
            part: As in `interactions`.

        Returns:
            `user_index`, `item_index`, and where they were packed `rating` and `timestamp`.

        Raises:
            UserError: The file does not match the manifest.
            Fault: The file cannot be read.
        """
        self.require(part)
        return self._read(f"interactions/{part}", None)

    def sequences(self, *parts: str) -> Interactions:
        """Read the interactions of several parts in one order of time.

        Args:
            *parts: As in `interactions`.

        Returns:
            User and item indices, int64 [E] each, by time where the data have times; otherwise part by part in the order in
            which they were packed.

        Raises:
            UserError: The data set has no such part, or a file does not match the manifest.
            Fault: A file cannot be read.
        """
        self.require(*parts)
        columns = ["user_index", "item_index"]
        timed = all("timestamp" in self._columns(f"interactions/{part}") for part in parts)
        if timed:
            columns.append("timestamp")
        table = pl.concat([self._read(f"interactions/{part}", columns) for part in parts])
        if timed:
            table = table.sort("timestamp", maintain_order=True)
        return Interactions(table["user_index"].to_numpy(writable=True), table["item_index"].to_numpy(writable=True))

    def require_times(self, *parts: str) -> None:
        """Refuse a data set whose interactions have no order of time.

        Args:
            *parts: As in `interactions`.

        Raises:
            UserError: The data set has no such part, or some of its interactions have no time.
            Fault: A file cannot be read.
        """
        self.require(*parts)
        for part in parts:
            timed = "timestamp" in self._columns(f"interactions/{part}")
            table = self._read(f"interactions/{part}", ["timestamp" if timed else "item_index"])
            missing = table["timestamp"].null_count() if timed else table.height
            if missing:
                raise UserError(
                    f"{self._option}: {missing} of {table.height} {part} interactions of {self.folder} have no time, but a "
                    "recommender that reads sequences needs their order; pack interactions with times (--columns.time), best "
                    "with --split leave_one_out"
                )

    def cold_items(self, part: str) -> np.ndarray:
        """Return the items all of whose interactions were held out.

        Args:
            part: `cold_validation` or `cold_test`.

        Returns:
            Item indices, sorted, int64; empty where the split has no such items.
        """
        return np.flatnonzero((self._column("items", "part") == part).to_numpy())

    @cached_property
    def items(self) -> pl.DataFrame:
        """All that is known of the items, by item index: the columns that `write_tables` lists."""
        return self._read("items", None).drop("item_index")

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by item index, I of them."""
        return self._column("items", "item_id").to_list()

    @cached_property
    def titles(self) -> list[str]:
        """Item titles by item index, I of them."""
        return self._column("items", "title").to_list()

    @cached_property
    def texts(self) -> list[str]:
        """Item texts by item index, I of them; empty where an item has none."""
        return self._column("items", "text").to_list()

    @cached_property
    def attributes(self) -> pl.DataFrame:
        """Further columns of the catalogue by item index, as text, without rows or columns where none were packed."""
        kept = [name for name in self.items.columns if name.startswith(ATTRIBUTE)]
        return self.items.select(pl.col(name).alias(name.removeprefix(ATTRIBUTE)) for name in kept)

    def has(self, modality: str) -> np.ndarray:
        """Return which items have a modality.

        Args:
            modality: `image` or `text`.

        Returns:
            bool [I].
        """
        column = f"has_{modality}"
        if column not in self._columns("items"):  # written only where an item lacks it
            return np.full(self.num_items, modality in self.manifest.modalities)
        return self._column("items", column).to_numpy()

    @cached_property
    def item_digests(self) -> np.ndarray:
        """Digest of image and text by item index, uint8 [I, 32], in a data set with content."""
        try:
            digests = bytes.fromhex("".join(self._column("items", "sha256")))
            return np.frombuffer(digests, dtype=np.uint8).reshape(self.num_items, 32)
        except (ValueError, TypeError) as error:
            raise self._foreign("items", f"its digests are none ({error})") from error

    @cached_property
    def content(self) -> str:
        """Fingerprint of the images and texts of all items in order, in a data set with content; the same for every split."""
        return hashlib.sha256(self.item_digests.tobytes()).hexdigest()

    @cached_property
    def item_shards(self) -> np.ndarray:
        """Shard number by item index, int64 [I]; -1 in a data set without content."""
        return self._column("items", "shard").to_numpy()

    @cached_property
    def user_ids(self) -> list[str]:
        """User ids by user index, U of them."""
        return self._column("users", "user_id").to_list()

    def shard_paths(self) -> list[Path]:
        """Return the tar files in order.

        Returns:
            Paths of the shards; empty in a data set without content.
        """
        return [self.folder / shard.name for shard in self.manifest.shards]

    def _column(self, table: str, name: str) -> pl.Series:
        return self._read(table, [name])[name]

    def _columns(self, table: str) -> list[str]:
        try:
            return parquet_columns(self.folder / f"{table}.parquet")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._foreign(table, first_line(error)) from error

    def _read(self, table: str, columns: list[str] | None) -> pl.DataFrame:
        """Read columns of a table from the same bytes whose digest was compared with the manifest; by default all."""
        path = self.folder / f"{table}.parquet"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Fault(
                f"{self._option}: cannot read {path} ({error.strerror}); restore the data set or pack again"
            ) from error
        found, expected = hashlib.sha256(content).hexdigest(), self.manifest.files.get(f"{table}.parquet", "none")
        if found != expected:
            raise UserError(
                f"{self._option}: {path} is {found[:12]}, but the manifest lists {expected[:12]}: it was changed; pack "
                "again, or rerun the command if it was packed again meanwhile"
            )
        try:
            found_rows = read_parquet(io.BytesIO(content), columns)
        except (pl.exceptions.PolarsError, ValueError) as error:
            raise self._foreign(table, first_line(error)) from error
        self._check_rows(table, found_rows)
        return found_rows

    def _check_rows(self, table: str, rows: pl.DataFrame) -> None:
        """Refuse tables that do not fit the manifest: digests only show that a file is the one that was written with it."""
        manifest = self.manifest
        number = {"items": manifest.num_items, "users": manifest.num_users} | {
            f"interactions/{part}": count for part, count in manifest.interactions.items()
        }
        if rows.height != number[table]:
            raise self._foreign(table, f"{rows.height} rows, but its manifest says {number[table]}")
        for column, largest in (("user_index", manifest.num_users), ("item_index", manifest.num_items)):
            if column in rows.columns:
                indices = rows[column]
                whole = indices.dtype.is_integer() and not indices.has_nulls()
                if not whole or not indices.is_between(0, largest - 1).all():
                    raise self._foreign(table, f"{column} holds something other than 0 to {largest - 1}")

    def _foreign(self, table: str, reason: str) -> UserError:
        return UserError(
            f"{self._option}: {self.folder / table}.parquet is not one that `ptmrec pack` wrote ({reason}); pack again"
        )

    def _check_files(self) -> None:
        tables = ["items", "users", *(f"interactions/{part}" for part in self.parts)]
        wanted = [*(self.folder / f"{table}.parquet" for table in tables), *self.shard_paths()]
        missing = [path for path in wanted if not path.is_file()]
        if missing:
            raise UserError(
                f"{self._option}: {self.folder} lacks {len(missing)} of {len(wanted)} files, first {missing[0].name}; "
                "copy the complete folder or run `ptmrec pack` again"
            )
