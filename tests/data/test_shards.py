"""Shards: division of the items, and content of the tar files."""

import hashlib
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ptmrec_dist.data.packing.shards import Sample, divide, sample_bytes, write_shards


def _write(folder: Path, num_items: int, num_shards: int) -> tuple[list[Sample], list]:
    rng = np.random.default_rng(0)
    images = [rng.bytes(int(size)) for size in rng.integers(1, 5000, num_items)]
    (folder / "spool").mkdir(parents=True)
    (folder / "spool" / "s").write_bytes(b"".join(images))
    offsets = np.cumsum([0, *map(len, images)])
    samples = [
        Sample(item, f'né"{item}', "ü" * int(rng.integers(1, 900)), "s", int(offsets[item]), len(images[item]))
        for item in range(num_items)
    ]
    chosen = np.array_split(np.arange(num_items), num_shards)
    with ThreadPoolExecutor(2) as pool:
        shards = write_shards(pool, folder, folder / "spool", [[samples[i] for i in part] for part in chosen])
    return samples, shards


def test_every_item_is_in_one_shard_in_an_order_that_repeats_with_the_seed() -> None:
    sizes = np.full(1000, 5000)
    shards = divide(sizes, 256_000_000, None, seed=1)
    assert len(shards) == 32
    assert sorted(np.concatenate(shards).tolist()) == list(range(1000))
    assert np.array_equal(np.concatenate(shards), np.concatenate(divide(sizes, 256_000_000, None, seed=1)))
    assert not np.array_equal(np.concatenate(shards), np.concatenate(divide(sizes, 256_000_000, None, seed=2)))


def test_tiny_catalogue_has_a_shard_per_item_and_the_number_can_be_set() -> None:
    assert len(divide(np.full(5, 5000), 256_000_000, None, seed=0)) == 5
    assert [len(shard) for shard in divide(np.full(5, 5000), 256_000_000, 2, seed=0)] == [3, 2]


def test_no_shard_is_larger_than_requested_and_one_huge_item_does_not_multiply_them() -> None:
    sizes = np.random.default_rng(0).integers(5_000, 25_000, 4000)
    shards = divide(sizes, 1_000_000, None, seed=0)
    assert max(sizes[shard].sum() for shard in shards) <= 1_000_000
    assert len(shards) < 1.3 * sizes.sum() / 1_000_000
    sizes[7] = 3_000_000
    assert len(divide(sizes, 1_000_000, None, seed=0)) < 500


def test_tar_files_contain_image_text_and_ids_as_the_manifest_lists(tmp_path: Path) -> None:
    samples, shards = _write(tmp_path, num_items=20, num_shards=3)
    assert [shard.samples for shard in shards] == [7, 7, 6]
    spooled = (tmp_path / "spool" / "s").read_bytes()
    remaining = iter(samples)
    for shard in shards:
        content = (tmp_path / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        with tarfile.open(tmp_path / shard.name) as tar:
            files = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for key in sorted({name.split(".")[0] for name in files}):
            sample = next(remaining)
            assert key == f"{sample.item_index:09d}"
            assert files[f"{key}.jpg"] == spooled[sample.offset : sample.offset + sample.size]
            assert files[f"{key}.txt"].decode() == sample.text
            assert json.loads(files[f"{key}.json"]) == {"item_index": sample.item_index, "item_id": sample.item_id}


def test_tar_files_do_not_depend_on_where_and_when_they_are_written(tmp_path: Path) -> None:
    first, second = (_write(tmp_path / name, num_items=6, num_shards=2)[1] for name in ("a", "b"))
    assert first == second
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


@pytest.mark.parametrize("num_items", [1, 20])
def test_computed_size_is_that_of_the_tar_file_before_its_end(num_items: int, tmp_path: Path) -> None:
    samples, shards = _write(tmp_path, num_items=num_items, num_shards=1)
    texts, ids = ([len(getattr(sample, name).encode()) for sample in samples] for name in ("text", "item_id"))
    total = sample_bytes(np.array([sample.size for sample in samples]), np.array(texts), np.array(ids)).sum()
    assert -(-(total + 1024) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE == shards[0].bytes
