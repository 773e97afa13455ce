"""Loader processes share the memory of the process that they were forked from, also when Python collects garbage."""

import gc
import re
from pathlib import Path

import pytest

from ptmrec_dist.data.prefetching import made_ahead

_MAPPED = Path("/proc/self/smaps_rollup")


def _own_bytes_after_a_collection(_: int) -> int:
    gc.collect()
    return 1024 * sum(map(int, re.findall(r"Private_(?:Clean|Dirty):\s+(\d+) kB", _MAPPED.read_text())))


@pytest.mark.skipif(not _MAPPED.exists(), reason="this system does not tell a process which memory is its own")
def test_a_collection_in_a_loader_process_copies_no_memory_of_its_parent() -> None:
    objects = [[number] for number in range(2_000_000)]
    held = 72 * len(objects)
    (own,) = made_ahead(_own_bytes_after_a_collection, [0], workers=1)
    assert own < held // 2
