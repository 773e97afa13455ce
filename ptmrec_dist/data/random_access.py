"""Random access to single items of the shards, by the offsets of their files in the tars.

Interaction-major training needs items in an order that no stream provides, and each of them many times. Reading them by
offset keeps one copy of the data, and as many decoded items as fit into some memory are decoded once; on object storage prefer
item-major batches.
"""

import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptmrec_dist.data.damage import DamageBudget
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.reader import Reader, decode_item
from ptmrec_dist.data.stream import ItemBatch
from ptmrec_dist.errors import Fault, on_one_line

_log = logging.getLogger(__name__)
KEPT_BYTES = 2**30
"""Decoded images and texts that the processes of a rank keep in memory together."""
Lost = Mapping[int, str]
"""Items that could not be read, and why."""


@dataclass(frozen=True)
class _Member:
    path: Path
    offset: int
    size: int


class ItemFiles:
    """The images and texts of a packed data set, by item index.

    Args:
        dataset: The packed data set; its tar headers are read once.
        reader: How to decode.
        max_damaged: Largest fraction of the items that may be unreadable; they are left out.
        workers: Processes that decode with copies of this and keep what they have decoded; 0: this one does.
    """

    def __init__(self, dataset: Dataset, reader: Reader, max_damaged: float = 0.0, workers: int = 0) -> None:
        self.reader, self._digests = reader, dataset.item_digests
        self._budget = DamageBudget(max_damaged, dataset.num_items)
        self._lost: set[int] = set()
        self._kept: dict[int, dict[str, Any]] = {}
        self._room = KEPT_BYTES // max(workers, 1)
        self._members: dict[int, dict[str, _Member]] = defaultdict(dict)
        for shard, path in enumerate(dataset.shard_paths()):
            items = set(np.flatnonzero(dataset.item_shards == shard).tolist())
            for member in _members_of(path):
                key, _, suffix = member.name.partition(".")
                if member.isreg() and key.isdecimal() and int(key) in items:
                    self._members[int(key)].setdefault(suffix, _Member(path, member.offset_data, member.size))

    def read(self, items: np.ndarray) -> ItemBatch:
        """Read and decode items.

        Args:
            items: Item indices, int64 [B].

        Returns:
            Their content, in this order, without those that cannot be read.

        Raises:
            Fault: More items are unreadable than `max_damaged` allows.
        """
        content, lost = self.decode(items)
        self.count(lost)
        return content

    def decode(self, items: np.ndarray) -> tuple[ItemBatch, Lost]:
        """Read and decode items, in any process.

        Args:
            items: Item indices, int64 [B].

        Returns:
            Their content, in this order, without those that cannot be read, and these with the reason, for `count`.
        """
        rows, lost = [], {}
        for item in items.tolist():
            try:
                rows.append(self._kept.get(item) or self._decoded(item))
            except (Fault, OSError) as error:
                lost[item] = str(error)
        pixels, tokens = self.reader.collate([row["image"] for row in rows], [row["text"] for row in rows])
        return ItemBatch(torch.tensor([row["item"] for row in rows], dtype=torch.int64), pixels, tokens), lost

    def _decoded(self, item: int) -> dict[str, Any]:
        """Read and decode an item, and keep it if there is room."""
        files = {ending: _bytes(member) for ending, member in self._members.get(item, {}).items()}
        row = decode_item(f"{item}", files, self.reader, self._digests)
        size = len(row["text"]) + (0 if row["image"] is None else row["image"].nbytes)
        if size <= self._room:
            self._room -= size
            self._kept[item] = row
        return row

    def count(self, lost: Lost) -> None:
        """Count items that could not be read, each once, in the process that trains.

        Args:
            lost: Items, with the reason.

        Raises:
            Fault: More items are unreadable than `max_damaged` allows.
        """
        for item, reason in lost.items():
            if item not in self._lost:
                self._lost.add(item)
                self._budget.spend(1, reason)


def _members_of(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar up to its end or to where it is damaged; those that are missing are counted when they are read."""
    try:
        with tarfile.open(path, "r:") as tar:  # never compressed: a few bytes could unpack to any number
            yield from tar
    except (OSError, tarfile.TarError, ValueError) as error:
        _log.warning("shards: %s is damaged (%s)", path, on_one_line(error))


def _bytes(member: _Member) -> bytes:
    with member.path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
