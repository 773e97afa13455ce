"""A file of each item's states in the middle of a tower, which all ranks map into memory.

Items have states of different lengths, so that padding takes no room. Each rank writes those of its items to a part of its
own; a manifest, written last, completes the folder and says what the states depend on.

Shape suffixes: B items of a batch, I items, S length of the states (tokens, or channels of a map), and whatever else they have.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.errors import first_line
from ptmrec_dist.files import write_atomically

_MANIFEST = "manifest.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class StatesNotWritten(Exception):
    """States could not be written, mostly because the disk is full; its cause is the OSError."""


class StatesWriter:
    """Writes the part of one rank. A context manager, which closes the file; a part without its index is incomplete.

    Args:
        folder: Existing folder.
        rank: The rank.

    Raises:
        StatesNotWritten: The file could not be created.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"{rank}.states"
        self._rows: list[tuple[int, int]] = []
        with _writing(self._path):
            self._file = self._path.open("wb")

    def __enter__(self) -> "StatesWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # bytes that a full disk did not take are tried once more
            self._file.close()

    def add(self, item: int, states: Tensor) -> int:
        """Append the states of an item.

        Args:
            item: Its index.
            states: [S, ...], of the same type and trailing shape for all items.

        Returns:
            Bytes written.

        Raises:
            StatesNotWritten: The disk is full.
        """
        self._rows.append((item, len(states)))
        content = states.contiguous().cpu().view(torch.uint8).numpy().data
        with _writing(self._path):
            return self._file.write(content)

    def complete(self) -> None:
        """Write the index of the part, after all states.

        Raises:
            StatesNotWritten: The disk is full.
        """
        with _writing(self._path):
            self._file.close()
            np.save(self._path.with_suffix(".npy"), np.array(self._rows, dtype=np.int64).reshape(-1, 2))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StatesNotWritten(f"cannot write {path} ({first_line(error)})") from error


def complete_states(folder: Path, key: str, ranks: int, like: Tensor) -> None:
    """Write the manifest, after all parts.

    Args:
        folder: Folder of the parts.
        key: Digest of all that the states depend on.
        ranks: Number of parts.
        like: States of an item, for their type and trailing shape.
    """
    described = {"key": key, "parts": ranks, "dtype": str(like.dtype).split(".")[1], "shape": list(like.shape[1:])}
    write_atomically(folder / _MANIFEST, json.dumps(described))


class StoredStates:
    """The states of items, mapped into memory.

    Args:
        folder: A folder that was completed.
        num_items: I.
    """

    def __init__(self, folder: Path, num_items: int) -> None:
        described = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        self.dtype, self.shape = _DTYPES[described["dtype"]], tuple(described["shape"])
        self._where = np.full((num_items, 3), -1, dtype=np.int64)  # part, first row, length
        self._parts = []
        for number in range(described["parts"]):
            rows = np.load(folder / f"{number}.npy", allow_pickle=False)
            items, lengths = rows[:, 0], rows[:, 1]
            self._where[items] = np.stack([np.full_like(items, number), np.cumsum(lengths) - lengths, lengths], axis=1)
            self._parts.append(self._mapped(folder / f"{number}.states", int(lengths.sum())))
        self.num_items = int((self._where[:, 0] >= 0).sum())
        self.num_bytes = sum(part.numel() * part.element_size() for part in self._parts)

    @classmethod
    def matching(cls, folder: Path, key: str, num_items: int) -> "StoredStates | None":
        """Open a folder if it is complete and holds what is needed.

        Args:
            folder: The folder, which may not exist.
            key: Digest of all that the states depend on.
            num_items: I.

        Returns:
            The states; None if the folder is incomplete, damaged or of something else.
        """
        try:
            described: Any = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            return cls(folder, num_items) if described["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def lengths(self, items_B: np.ndarray) -> np.ndarray:
        """Look up how long the states of items are.

        Args:
            items_B: Item indices, int64 [B].

        Returns:
            int64 [B]; -1 for items that are not stored.
        """
        lengths_B: np.ndarray = self._where[items_B, 2]
        return lengths_B

    def copy(self, items: Iterable[int], rows: Iterable[Tensor]) -> None:
        """Copy the states of stored items.

        Args:
            items: Item indices.
            rows: Tensors of at least their length on the CPU, [S', ...] each; what is beyond stays as it is.
        """
        for item, row in zip(items, rows, strict=True):
            part, start, length = self._where[item]
            row[:length] = self._parts[part][start : start + length]

    def _mapped(self, path: Path, rows: int) -> Tensor:
        values = rows * math.prod(self.shape)
        expected = values * torch.empty(0, dtype=self.dtype).element_size()
        if path.stat().st_size != expected:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {expected}")
        if not values:
            return torch.empty(0, *self.shape, dtype=self.dtype)
        return torch.from_file(str(path), size=values, dtype=self.dtype).view(rows, *self.shape)
