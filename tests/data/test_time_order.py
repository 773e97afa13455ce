"""Time order of the parts against Python's own sort."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.data import blocks
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.data.packing.time_order import parts_in_order
from ptmrec_dist.data.scratch import IN_MEMORY, Scratch

_TIMES = {
    "all different": lambda rng: rng.permutation(3000).astype(float),
    "few": lambda rng: rng.choice([-1.5, 0.0, 7.0, 1e12], 3000),
    "one": lambda rng: np.zeros(3000),
    "one before many others": lambda rng: np.where(rng.random(3000) < 0.9, 5.0, rng.random(3000) * 1000),
    "none at all": lambda rng: np.full(3000, np.nan),
    "some missing": lambda rng: np.where(rng.random(3000) < 0.4, np.nan, rng.integers(0, 500, 3000)),
}


def _rows(times: np.ndarray | None) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    users, items = (pl.Enum([f"{name}{number}" for number in range(40)]) for name in "ui")
    rows = pl.DataFrame(
        {
            "row": range(3000),
            "user_id": pl.Series(rng.integers(0, 40, 3000).astype(np.uint8)).cat.to(users),
            "item_id": pl.Series(rng.integers(0, 40, 3000).astype(np.uint8)).cat.to(items),
            "rating": pl.Series(np.arange(3000) / 2).replace({3.0: None}),
            "part": pl.Series(rng.choice([0, 0, 0, 1, 4], 3000).astype(np.uint8)).cat.to(pl.Enum(PARTS)),
        }
    )
    return rows if times is None else rows.with_columns(timestamp=pl.Series(times).fill_nan(None))


def _expected(rows: pl.DataFrame, part: str, by_item: bool) -> list[dict]:
    kept = [row for row in rows.to_dicts() if row["part"] == part]
    for row in kept:
        row |= {f"{name}_index": int(row[f"{name}_id"][1:]) for name in ("user", "item")}
    if "timestamp" in rows.columns:
        first = {None: -np.inf}
        kept.sort(key=lambda row: (first.get(row["timestamp"], row["timestamp"]), by_item and row["item_index"]))
    names = ["user_index", "item_index", "rating", *(["timestamp"] if "timestamp" in rows.columns else [])]
    return [{name: row[name] for name in names} for row in kept]


@pytest.mark.parametrize("length", [50, 2**20])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", [*_TIMES, "without"])
def test_each_part_is_in_time_order_and_otherwise_in_that_of_the_file(
    name: str, on_disk: bool, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_ROWS", length)
    rows = _rows(_TIMES[name](np.random.default_rng(0)) if name in _TIMES else None)
    for by_item in (False, True):
        parts = parts_in_order(rows, by_item, Scratch(tmp_path) if on_disk else IN_MEMORY)
        assert list(parts) == ["train", "validation", "cold_test"]
        for part, table in parts.items():
            assert table.to_dicts() == _expected(rows, part, by_item)
            assert table.schema["user_index"] == table.schema["item_index"] == pl.Int64


class _Watched(Scratch):
    longest = 0

    def table(self, blocks: Iterable[pl.DataFrame]) -> pl.DataFrame:
        found = list(blocks)
        self.longest = max(self.longest, *(block.height for block in found))
        return super().table(found)


@pytest.mark.parametrize("name", _TIMES)
def test_no_more_rows_than_two_blocks_are_sorted_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", 50)
    scratch = _Watched()
    parts_in_order(_rows(_TIMES[name](np.random.default_rng(0))), False, scratch)
    assert 0 < scratch.longest <= 100
