"""Training that runs frozen blocks once for each item ends as training that runs them in every step."""

import errno
import gc
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptmrec_dist.config import (
    ContrastiveConfig,
    EncoderConfig,
    JointConfig,
    LastNConfig,
    Stage2Config,
    TuningConfig,
    recommender_config,
)
from ptmrec_dist.data.stream import ItemBatch, ItemStream
from ptmrec_dist.encoders.frozen_prefix import FrozenPrefix
from ptmrec_dist.encoders.stored_states import StatesNotWritten, StatesWriter
from ptmrec_dist.training import frozen_states
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.joint import train_joint
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.full_disk import files_below
from tests.ranks import exit_codes_on_ranks, run_on_ranks
from tests.training.steps import kill_before_step

COMMON: dict[str, Any] = {"device": "cpu", "tracking": UNTRACKED, "epochs": 2, "checkpoint_every": 1}
LAST = TuningConfig(method="last_n", settings=LastNConfig(n=1))


def _stage2(project: Project, out: Path, cache_gib: float = 1.0) -> Stage2Config:
    return Stage2Config(stage1=project.stage1, out=out, batch_size=60, tuning=LAST, cache_gib=cache_gib, **COMMON)


def _counted(train: Any, config: Any) -> Counter[str]:
    """Train; count the items whose states were looked up, and those that went through frozen blocks."""
    counts: Counter[str] = Counter()
    look_up, enter = FrozenPrefix._looked_up, FrozenPrefix._entering

    def counted_look_up(prefix: FrozenPrefix, inputs: Any, items: Any) -> Any:
        counts["looked up"] += len(items)
        return look_up(prefix, inputs, items)

    def counted_enter(prefix: FrozenPrefix, inputs: Any) -> Any:
        counts["run"] += len(inputs)
        return enter(prefix, inputs)

    FrozenPrefix._looked_up, FrozenPrefix._entering = counted_look_up, counted_enter  # type: ignore[method-assign]
    try:
        train(config)
    finally:
        FrozenPrefix._looked_up, FrozenPrefix._entering = look_up, enter  # type: ignore[method-assign]
    return counts


def _assert_equal(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    """Losses, of which the second follows an update, and features are equal; AdamW makes much of gradients of about 0."""
    lines = [
        [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] for run in (found, expected)
    ]
    for line, wanted in zip(*lines, strict=True):
        assert line == pytest.approx(wanted, rel=tolerance)
    for path in (expected / "features").glob("*.npy"):
        np.testing.assert_allclose(np.load(found / "features" / path.name), np.load(path), atol=tolerance)


def _killed(config: Stage2Config) -> None:
    kill_before_step(1)
    train_stage2(config)


@pytest.mark.slow
def test_stage2_learns_the_same_on_stored_states(tiny_project: Project, tmp_path: Path) -> None:
    plain = _counted(train_stage2, _stage2(tiny_project, tmp_path / "plain", cache_gib=0))
    stored = _counted(train_stage2, _stage2(tiny_project, tmp_path / "stored"))
    some = _counted(train_stage2, _stage2(tiny_project, tmp_path / "some", cache_gib=1e-6))
    assert plain == {}
    # 60 items once through two towers, and a few examples; 48 of them twice in training, and all in two refreshes.
    assert stored["looked up"] > 4 * 60
    assert 120 < stored["run"] < 140 < some["run"]
    for name in ("stored", "some"):
        _assert_equal(tmp_path / name, tmp_path / "plain")
        assert not (tmp_path / name / "checkpoints").exists()
    run_on_ranks(2, train_stage2, _stage2(tiny_project, tmp_path / "ranks"))
    _assert_equal(tmp_path / "ranks", tmp_path / "plain")


@pytest.mark.slow
def test_a_killed_run_finds_its_states_or_writes_them_anew(tiny_project: Project, tmp_path: Path) -> None:
    train_stage2(_stage2(tiny_project, tmp_path / "whole"))
    for damage in ("none", "cut", "key"):
        config = _stage2(tiny_project, tmp_path / damage)
        assert exit_codes_on_ranks(1, _killed, config) == [-9]
        folder = config.out / "checkpoints" / "frozen_states" / "text"
        part, manifest = folder / "0.states", folder / "manifest.json"
        if damage == "cut":
            part.write_bytes(part.read_bytes()[:-1])
        elif damage == "key":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "of other weights"}))
            part.write_bytes(bytes(part.stat().st_size))
        counts = _counted(train_stage2, config)
        assert counts["run"] < 20 if damage == "none" else counts["run"] > 120
        _assert_equal(config.out, tmp_path / "whole", 0.0 if damage == "none" else 1e-4)


@pytest.mark.slow
def test_joint_and_contrastive_training_learn_the_same_on_stored_states(tiny_project: Project, tmp_path: Path) -> None:
    for cache_gib in (0.0, 1.0):
        pairs = ContrastiveConfig(
            shards=tiny_project.shards,
            encoder=EncoderConfig(model=str(tiny_project.clip)),
            out=tmp_path / f"pairs-{cache_gib}",
            batch_size=30,
            tuning=LAST,
            cache_gib=cache_gib,
            **COMMON,
        )
        sequences = JointConfig(
            shards=tiny_project.shards,
            features=tiny_project.features,
            out=tmp_path / f"sequences-{cache_gib}",
            recommender="pmmrec",
            model=recommender_config("pmmrec", dim=8, length=5, dropout=0.0, fusion_heads=2),
            batch_size=50,
            tuning=LAST,
            cache_gib=cache_gib,
            **COMMON,
        )
        assert bool(_counted(fine_tune, pairs)) == bool(cache_gib)
        assert bool(_counted(train_joint, sequences)) == bool(cache_gib)
    _assert_equal(tmp_path / "pairs-1.0", tmp_path / "pairs-0.0")
    _assert_equal(tmp_path / "sequences-1.0", tmp_path / "sequences-0.0")


@pytest.mark.slow
def test_a_full_disk_leaves_no_states_and_changes_nothing(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = frozen_states._write_part

    def on_a_full_disk(*arguments: Any) -> None:
        with files_below(1000):
            write(*arguments)

    train_stage2(_stage2(tiny_project, tmp_path / "plain", cache_gib=0))
    monkeypatch.setattr(frozen_states, "_write_part", on_a_full_disk)
    train_stage2(_stage2(tiny_project, tmp_path / "full"))
    _assert_equal(tmp_path / "full", tmp_path / "plain")
    found = capsys.readouterr().out
    assert "frozen blocks: rank 0 cannot write " in found
    assert "the image tower runs whole, since its states could not be stored" in found


def test_what_a_full_disk_did_not_take_is_an_error_and_the_file_is_closed(tmp_path: Path) -> None:
    def write() -> None:
        with files_below(1000), StatesWriter(tmp_path, 0) as writer:
            written.append(writer)
            for item in range(9):
                writer.add(item, torch.zeros(50, 10))
            writer.complete()

    written: list[StatesWriter] = []
    with pytest.raises(StatesNotWritten, match=r"cannot write .*0\.states \("):
        write()
    assert written[0]._file.closed
    with pytest.raises(StatesNotWritten, match=r"cannot write .*none"):
        StatesWriter(tmp_path / "none", 0)


@pytest.mark.slow
def test_an_error_while_items_are_read_is_no_full_disk(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(stream: ItemStream, epoch: int, skip: int = 0) -> Iterator[ItemBatch]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        yield  # a generator: the error comes with the first batch

    monkeypatch.setattr(ItemStream, "epoch", unreadable)
    with pytest.raises(OSError, match="Too many open files") as caught:
        train_stage2(_stage2(tiny_project, tmp_path / "run"))
    writers = [found for found in gc.get_objects() if type(found) is StatesWriter]  # the traceback keeps them
    assert len(writers) == 2
    assert all(writer._file.closed for writer in writers)
    assert caught.value.errno == errno.EMFILE
