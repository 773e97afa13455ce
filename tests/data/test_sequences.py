"""Training sequences: items in time order, who is left out, and data that have no order of time."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.config import PackConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.errors import UserError

LENGTH = 3


def _packed(folder: Path, taken: dict[str, list[str]], split: str = "leave_one_out", **settings: object) -> Dataset:
    """Pack what users took, one item after the other, written in any order."""
    rows = [(user, item, 10 * time) for user, items in taken.items() for time, item in enumerate(items)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").sample(
        fraction=1, shuffle=True, seed=0
    )
    folder.mkdir(exist_ok=True)
    table.write_csv(folder / "a.csv")
    pack(PackConfig(interactions=folder / "a.csv", out=folder / "packed", split=split, core=0, **settings))  # type: ignore[arg-type]
    return Dataset(folder / "packed")


def _of(data: Dataset, user: str, sequences: TrainingSequences) -> list[str]:
    """The sequences of a user, the latest first."""
    (rows,) = np.nonzero(sequences.users == data.user_ids.index(user))
    found = sequences.of(rows)
    return ["".join(data.item_ids[item] for item in items[mask]) for items, mask in zip(found.items, found.mask)]


def _occurrences(data: Dataset, sequences: TrainingSequences) -> dict[str, int]:
    return dict(zip(data.item_ids, sequences.occurrences.tolist(), strict=True))


def test_the_latest_sequence_ends_before_what_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = {"long": list("fbdcaegh"), "short": list("cab"), "two": list("ba"), "one": ["a"]}
    data = _packed(tmp_path, taken)
    with caplog.at_level(logging.WARNING):
        sequences = TrainingSequences(data, LENGTH, latest=True)
    assert _of(data, "long", sequences) == ["dcae"]  # LENGTH + 1 of fbdcae: g validates, h tests
    assert _of(data, "two", sequences) == ["ba"]  # too few for held-out items
    assert [data.user_ids[user] for user in sequences.users] == ["long", "two"]
    assert sequences.num_targets == LENGTH + 1
    assert _occurrences(data, sequences) == {item: ("dcae" + "ba").count(item) for item in data.item_ids}
    assert "2 of 4 users have fewer than 2 training interactions" in caplog.text
    assert "2 of 10 training interactions are not trained on: --sequences latest" in caplog.text


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("fbdcaeg", ["caeg", "fbdc"]),  # two whole sequences
        ("fbdcaegh", ["aegh", "bdca", "fb"]),
        ("fbdcaegha", ["egha", "dcae", "fbd"]),
        ("fbdc", ["fbdc"]),
        ("fbd", ["fbd"]),
    ],
)
def test_a_long_history_is_cut_into_sequences_that_have_every_item_but_the_first_as_a_target_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, training: str, expected: list[str]
) -> None:
    data = _packed(tmp_path, {"u": [*training, "y", "z"], "v": list("ayzz")}, repeats="keep")
    with caplog.at_level(logging.WARNING):
        sequences = TrainingSequences(data, LENGTH)
    assert _of(data, "u", sequences) == expected
    assert sorted("".join(items[1:] for items in expected)) == sorted(training[1:])
    assert _of(data, "v", sequences) == ["ay"]
    assert sequences.num_targets == len(training) - 1 + 1
    read = "".join(expected) + "ay"
    assert _occurrences(data, sequences) == {item: read.count(item) for item in data.item_ids}
    assert "not trained on" not in caplog.text


def test_sequences_of_a_temporal_split_end_where_validation_begins_for_all_users(tmp_path: Path) -> None:
    data = _packed(tmp_path, {"u": list("abcdefgh"), "v": list("bcadfehg"), "short": list("ec")}, split="temporal")
    sequences = TrainingSequences(data, LENGTH)
    assert {user: _of(data, user, sequences) for user in data.user_ids} == {
        "u": ["cdef", "abc"],
        "v": ["adfe", "bca"],
        "short": ["ec"],
    }


def test_data_without_an_order_of_time_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\n" + "".join(f"u{n % 5},i{n % 7}\n" for n in range(35)))
    pack(PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "packed", core=0))
    with pytest.raises(UserError, match=r"shards: 25 of 25 train interactions of .* have no time.*--columns\.time"):
        TrainingSequences(Dataset(tmp_path / "packed"), LENGTH)
    rows = [(f"u{n % 5}", f"i{n % 7}", None if n == 1 else n) for n in range(35)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "a.csv")
    pack(PackConfig(interactions=tmp_path / "a.csv", out=tmp_path / "packed", core=0))
    data = Dataset(tmp_path / "packed")
    with pytest.raises(UserError, match=r"shards: 1 of \d+ \w+ interactions of .* have no time"):
        data.require_times(*data.parts)


def test_users_of_one_training_interaction_alone_are_refused(tmp_path: Path) -> None:
    data = _packed(tmp_path, {f"u{user}": list("abc") for user in range(4)})
    with pytest.raises(UserError, match=r"no user of .* has 2 training interactions"):
        TrainingSequences(data, LENGTH)


def test_items_that_are_taken_again_are_dropped_or_kept(tmp_path: Path) -> None:
    taken = {"u": list("abcabcba"), "v": list("abcdefgh")}
    dropped, kept = (_packed(tmp_path / name, taken, repeats=name) for name in ("drop", "keep"))
    assert _of(dropped, "u", TrainingSequences(dropped, 8)) == []
    assert _of(kept, "u", TrainingSequences(kept, 8)) == ["abcabc"]
    assert dropped.manifest.report["interactions"]["dropped"]["repeated user and item"]["count"] == 5
    assert not kept.manifest.report["interactions"]["dropped"]
