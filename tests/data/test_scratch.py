"""Scratch space: what was stored comes back, nothing is left in the folder, and a full disk is an error."""

import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
from tests.full_disk import files_below


def _table() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    words = pl.Series([f"w{number}" for number in rng.integers(0, 50, 1003)])
    table = pl.DataFrame(
        {
            "row": pl.Series(range(1003), dtype=pl.UInt32),
            "id": words.cast(pl.Categorical),
            "number": words.cast(pl.Enum([f"w{number}" for number in range(50)])),
            "rating": rng.random(1003),
            "label": pl.Series(rng.integers(0, 3, 1003), dtype=pl.Int8),
            "dated": rng.random(1003) < 0.5,
        }
    )
    gaps = {name: pl.when(rng.random(1003) < 0.9).then(name) for name in ("id", "rating", "label", "dated")}
    return table.with_columns(expression.alias(f"{name}_with_gaps") for name, expression in gaps.items())


@pytest.mark.parametrize("lengths", [[1003], [1] * 1003, [0, 5, 8, 0, 990], [0]])
def test_a_table_of_every_type_comes_back_from_any_blocks_in_one_chunk(lengths: list[int], tmp_path: Path) -> None:
    table, ends = _table(), np.cumsum(lengths).tolist()
    blocks = [table[end - length : end] for length, end in zip(lengths, ends, strict=True)]
    stored = Scratch(tmp_path).table(blocks)
    assert stored.equals(table[: ends[-1]])
    assert stored.schema == table.schema
    assert set(stored.n_chunks("all")) == {1}
    assert IN_MEMORY.table(blocks).equals(stored)


def test_categories_stay_what_they_were_when_their_blocks_are_gone(tmp_path: Path) -> None:
    """Polars renumbers categories as soon as no column has any."""
    words = [f"{number} of test_scratch" for number in range(100)]

    def blocks() -> Iterator[pl.DataFrame]:
        for start in range(0, 100, 10):
            yield pl.DataFrame({"id": pl.Series(words[start : start + 10], dtype=pl.Categorical)})
            gc.collect()

    assert Scratch(tmp_path).table(blocks())["id"].to_list() == words


def space_taken(folder: Path) -> list[int]:
    """Bytes on the disk of each file of a folder that this process has open; those of scratch space have no name."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            if str(path.readlink()).startswith(str(folder)):
                file = path.stat()
                found[file.st_ino] = file.st_blocks * 512  # one that is being mapped is open twice for a moment
    return list(found.values())


def test_arrays_are_files_that_leave_with_their_last_use(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    array = scratch.empty(10_000, np.int16)
    assert min(space_taken(tmp_path)) >= 20_000  # before it is written: later it could not be refused
    array[:] = range(10_000)
    table = scratch.table([pl.DataFrame({"number": array})])
    assert array.tolist() == table["number"].to_list() == list(range(10_000))
    assert len(space_taken(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []
    del array, table
    assert space_taken(tmp_path) == []
    assert scratch.empty(0, np.int16).tolist() == []


def test_a_disk_without_space_is_an_error_before_anything_is_mapped(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    numbers = pl.DataFrame({"number": range(10_000)})
    with files_below(50_000):
        with pytest.raises(OSError, match="File too large"):
            scratch.empty(10_000, np.int64)
        with pytest.raises(OSError, match="File too large"):
            scratch.table([numbers])
    assert scratch.table([numbers]).equals(numbers)
