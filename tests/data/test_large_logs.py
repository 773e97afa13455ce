"""Logs that do not fit into memory are packed as those that do, from a disk that must have the space."""

import errno
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.cli import run
from ptmrec_dist.config import PackConfig
from ptmrec_dist.data import blocks
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.tables import reading
from ptmrec_dist.errors import FAULT_CODE
from tests.data.small_catalogue import folder_bytes
from tests.data.test_scratch import space_taken
from tests.full_disk import files_below
from tests.resident_memory import anonymous_memory_below, peak_of

_ROWS = 4000


def _write_log(path: Path) -> Path:
    """Repeated pairs, times that many rows have and others that cannot be read, ratings too low, bad labels, rare items."""
    numbers = range(_ROWS)
    pl.DataFrame(
        {
            "user_id": [f"{row * row % 97}.0" if row % 50 else "" for row in numbers],
            "item_id": [f"i{row * 31 % (67 if row % 9 else 400)}" for row in numbers],
            "rating": [str(row % 6) if row % 70 else "good" for row in numbers],
            "timestamp": [str(1_400_000_000 + row * 7919 % 1000 * 60) if row % 40 else "soon" for row in numbers],
            "x_label": [str(max(0, row % 7 - 4)) if row % 60 else "9" for row in numbers],
        }
    ).write_csv(path)
    pl.DataFrame({"item_id": [f"i{item}" for item in range(390)], "text": "a thing"}).write_csv(
        path.parent / "items.csv"
    )
    return path


_SETTINGS = {
    "random": {"repeats": "keep", "core": 0},
    "leave_one_out": {"min_rating": 2.0, "core": 3},
    "temporal": {"core": 2},
    "given": {},
    "cold_items": {"seed": 3},
}


def _config(folder: Path, split: str, out: str) -> PackConfig:
    items = folder / "items.csv" if split == "cold_items" else None
    settings = {"interactions": _write_log(folder / "log.csv"), "out": folder / out, "split": split, "items": items}
    return PackConfig(**settings, **_SETTINGS[split], workers=1, num_shards=2 if items else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", _SETTINGS)
def test_a_log_packed_in_small_blocks_has_the_bytes_of_one_packed_at_once(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(_config(tmp_path, split, "at_once"))
    monkeypatch.setattr(blocks, "_ROWS", 70)
    monkeypatch.setattr(reading, "_BATCH", 64)
    pack(_config(tmp_path, split, "in_blocks"))
    assert folder_bytes(tmp_path / "in_blocks") == folder_bytes(tmp_path / "at_once")
    assert not list(tmp_path.glob(".*"))


_FINGERPRINTS = {
    "random": "f74b2fc939d9880a513c3cad38d21cb070280dbe9f2e9fd3d84c2ea1f0bf3115",
    "leave_one_out": "94594c1d0c5cfa94f7a2d49e3a3a07de300acd65f3c806e7a59959be3f0c94a9",
    "given": "91324b7e052f68e17686b1b9ae5252859fe73f428ed2deae5825c3c0129b768c",
    "cold_items": "bef2b0780bd1ca81eb01e6472dc0733008dbf9ed9f5c7507379f7a3958f65857",
}
"""Those of the version before, which held all rows in memory as one table."""


@pytest.mark.parametrize("split", _FINGERPRINTS)
def test_content_is_that_of_data_sets_that_were_packed_in_memory(split: str, tmp_path: Path) -> None:
    pack(_config(tmp_path, split, "out"))
    assert Dataset(tmp_path / "out").fingerprint == _FINGERPRINTS[split]


_LONG = 20_000
"""Characters of an id: files of tables then outgrow those of scratch space."""


@pytest.mark.parametrize(("space", "in_scratch"), [(20_000, True), (200_000, False)])
def test_a_full_disk_ends_in_one_line_and_keeps_what_was_packed_before(
    space: int, in_scratch: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = _write_log(tmp_path / "log.csv"), tmp_path / "out"
    words = ["--interactions", str(log), "--core", "0", "--workers", "1", "--out", str(out)]
    assert run("pack", words) == 0
    if not in_scratch:
        noise = np.random.default_rng(0).integers(97, 123, (97, _LONG), dtype=np.uint8)
        name = {f"{user}.0": noise[user].tobytes().decode() for user in range(97)}
        pl.read_csv(log, infer_schema=False).with_columns(pl.col("user_id").replace(name)).write_csv(log)
    before = folder_bytes(tmp_path)
    capsys.readouterr()
    with files_below(space):
        assert run("pack", words) == FAULT_CODE
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    reason = rf"\[Errno {errno.EFBIG}\] File too large(: .*)?; remove the cause and run the same command again"
    assert re.fullmatch(f"ptmrec pack: rank 0: error: packing into {out}: {reason}", line)
    assert in_scratch or "/.out.new/users.parquet" in line
    assert folder_bytes(tmp_path) == before


@pytest.mark.slow
def test_packing_takes_less_than_40_bytes_of_memory_an_interaction_and_80_of_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 4 million, of which all 40 are blocks and what polars reads ahead: they are not more for longer logs."""
    rows, rng = 4_000_000, np.random.default_rng(0)
    log = {"user_id": rng.integers(0, 20_000, rows), "item_id": rng.integers(0, 5_000, rows)}
    log |= {"rating": rng.random(rows), "timestamp": rng.random(rows)}
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    del log
    monkeypatch.setattr(blocks, "_ROWS", 2**16)
    monkeypatch.setattr(reading, "_BATCH", 2**16)
    config = PackConfig(interactions=tmp_path / "log.parquet", out=tmp_path / "out", split="leave_one_out")
    with peak_of(lambda: sum(space_taken(tmp_path / ".out.new"))) as disk, anonymous_memory_below(40 * rows):
        pack(config)
    assert 60 * rows < disk[0] < 80 * rows
