"""WebDataset shards: tar files whose bytes depend on nothing but their samples.

Shape suffixes: I items.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptmrec_dist.data.manifest import Shard
from ptmrec_dist.data.packing.workers import Pool
from ptmrec_dist.files import sha256
from ptmrec_dist.progress import Progress

_BLOCK = 512
_DEFAULT_SHARDS = 32
_ORDER_STREAM = 2
"""Random stream of the item order; the split uses streams 0 and 1 of the same seed."""


class Sample(NamedTuple):
    """One item of a shard."""

    item_index: int
    """Row of the item."""
    item_id: str
    """Its id."""
    text: str
    """Its text."""
    spool: str
    """Spool file that holds its image."""
    offset: int
    """First byte of the image in it."""
    size: int
    """Bytes of the image; 0 where the item has none."""


def sample_bytes(image_bytes: np.ndarray, text_bytes: np.ndarray, id_bytes: np.ndarray) -> np.ndarray:
    """Compute how much of a tar file each sample takes.

    Args:
        image_bytes: Size of each image, int64 [I].
        text_bytes: Size of each text in UTF-8, int64 [I].
        id_bytes: Size of each id in UTF-8, int64 [I].

    Returns:
        Bytes of the three members with their headers and padding, int64 [I].
    """
    overhead = len(_describe(10**9, ""))
    sizes = np.stack([image_bytes, text_bytes, id_bytes + overhead])
    members = _BLOCK + -(-sizes // _BLOCK) * _BLOCK
    total_I: np.ndarray = members.sum(axis=0)
    return total_I


def divide(sizes_I: np.ndarray, shard_bytes: int, num_shards: int | None, seed: int) -> list[np.ndarray]:
    """Spread the items over shards in random order.

    Args:
        sizes_I: Bytes of each item, from `sample_bytes`.
        shard_bytes: Largest size of a shard in bytes, unless one item takes half of that; ignored with `num_shards`.
        num_shards: Number of shards; by default 32 (or one per item), more where `shard_bytes` requires it.
        seed: Seed of the order.

    Returns:
        Item indices of each shard.
    """
    num_items = len(sizes_I)
    order = np.random.default_rng((seed, _ORDER_STREAM)).permutation(num_items)
    if num_shards is not None:
        return np.array_split(order, num_shards)
    # A tar file ends with two empty blocks and is padded to whole records.
    room = max(shard_bytes - 2 * tarfile.RECORDSIZE, 2 * int(sizes_I.max()))
    num_shards = max(min(_DEFAULT_SHARDS, num_items), -(-int(sizes_I.sum()) // room))
    while True:
        shards = np.array_split(order, min(num_shards, num_items))
        if num_shards >= num_items or max(sizes_I[shard].sum() for shard in shards) <= room:
            return shards
        num_shards += 1 + num_shards // 100


def write_shards(pool: Pool, folder: Path, spool: Path, shards: Sequence[Sequence[Sample]]) -> list[Shard]:
    """Write the tar files, each in one process.

    Args:
        pool: Processes to write in.
        folder: Folder for the tar files.
        spool: Folder of the spool files.
        shards: Samples of each shard, in order.

    Returns:
        What each file holds.
    """
    paths = [folder / f"shard-{number:06d}.tar" for number in range(len(shards))]
    written = pool.map(_write_shard, paths, [spool] * len(shards), shards)
    return list(Progress(written, total=len(shards), desc="shards", unit="shard"))


def copy_renumbered(source: Path, path: Path, first_item: int, prefix: str) -> None:
    """Copy a tar file with other numbers and ids of its items.

    Args:
        source: Tar file that `write_shards` wrote.
        path: Tar file to write.
        first_item: Added to the number of each item.
        prefix: Put in front of each id.
    """
    with tarfile.open(source, "r:") as old, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            key, _, ending = member.name.partition(".")
            file = old.extractfile(member)
            assert file is not None  # `write_shards` writes plain files alone
            item, data = int(key) + first_item, file.read()
            if ending == "json":
                data = _describe(item, prefix + json.loads(data)["item_id"])
            _add(new, f"{_key(item)}.{ending}", data)


def _write_shard(path: Path, spool: Path, samples: Sequence[Sample]) -> Shard:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            key = _key(sample.item_index)
            if sample.size:
                with (spool / sample.spool).open("rb") as file:
                    file.seek(sample.offset)
                    _add(tar, f"{key}.jpg", file.read(sample.size))
            if sample.text:
                _add(tar, f"{key}.txt", sample.text.encode())
            _add(tar, f"{key}.json", _describe(sample.item_index, sample.item_id))
    return Shard(path.name, len(samples), path.stat().st_size, sha256(path))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and mode keep their fixed defaults
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _key(item_index: int) -> str:
    return f"{item_index:09d}"


def _describe(item_index: int, item_id: str) -> bytes:
    return json.dumps({"item_index": item_index, "item_id": item_id}, ensure_ascii=False).encode()
