"""Random access to single items of the shards, by the offsets of their files in the tars.

Interaction-major training needs items in no order that a stream could give. Reading them by offset keeps one copy of the
data; on object storage prefer item-major batches.
"""

import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemBatch, Reader, decode_item


@dataclass(frozen=True)
class _Place:
    path: Path
    offset: int
    size: int


class ItemFiles:
    """The images and texts of a packed data set, by item index.

    Args:
        dataset: The packed data set; its tar headers are read once.
        reader: How to decode.
    """

    def __init__(self, dataset: Dataset, reader: Reader) -> None:
        self.reader = reader
        self._places: dict[int, dict[str, _Place]] = defaultdict(dict)
        for path in dataset.shard_paths():
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    self._places[int(key)][suffix] = _Place(path, member.offset_data, member.size)

    def read(self, items: np.ndarray) -> ItemBatch:
        """Read and decode items.

        Args:
            items: Item indices, int64 [B].

        Returns:
            Their content, in this order.

        Raises:
            UserError: An item whose image or text is missing or unreadable.
        """
        rows = [
            decode_item(f"{item}", self._bytes(int(item), "jpg"), self._bytes(int(item), "txt"), self.reader)
            for item in items
        ]
        pixels, tokens = self.reader.collate([row["image"] for row in rows], [row["text"] for row in rows])
        return ItemBatch(torch.from_numpy(np.asarray(items, dtype=np.int64)), pixels, tokens)

    def _bytes(self, item: int, suffix: str) -> bytes | None:
        place = self._places.get(item, {}).get(suffix)
        if place is None:
            return None
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
