"""Feature arrays supplied by the user: rows are matched to items, and misfits are refused before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ptmrec_dist import cli
from ptmrec_dist.config import FeaturesConfig, PackConfig
from ptmrec_dist.data.arrays import read_array, unit_rows
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.errors import UserError

ITEMS = 12


def _packed(folder: Path, name: str, ids: list[str]) -> Path:
    """Interactions of ten users with all items; packing orders items by id."""
    rows = [(f"u{user}", item) for user in range(10) for item in ids]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_csv(folder / f"{name}.csv")
    pack(PackConfig(interactions=folder / f"{name}.csv", out=folder / name, core=0, workers=1))
    return folder / name


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items 11, 10, ..., 0, as published data sets number them."""
    return _packed(tmp_path_factory.mktemp("numbered"), "shards", [str(item) for item in reversed(range(ITEMS))])


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _packed(tmp_path_factory.mktemp("named"), "shards", [f"i{item:02d}" for item in range(ITEMS)])


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ITEMS, 5))


def _features(shards: Path, out: Path, **settings: Any) -> dict[str, np.ndarray]:
    extract_features(FeaturesConfig(shards=shards, out=out, **settings))
    return {path.stem: np.load(path) for path in out.glob("*.npy")}


def test_row_r_is_item_r_where_ids_are_row_numbers(numbered: Path, rows: np.ndarray, tmp_path: Path) -> None:
    longer = np.concatenate([rows, rows[:3] + 100])  # items that were not packed have rows, too
    np.save(tmp_path / "image.npy", longer)
    found = _features(numbered, tmp_path / "out", image_npy=tmp_path / "image.npy", raw=True)
    assert found.keys() == {"image"}
    ids = Dataset(numbered).item_ids
    np.testing.assert_array_equal(found["image"], np.stack([longer[int(item)] for item in ids]).astype(np.float32))


def test_rows_follow_the_packed_items_where_ids_are_names(named: Path, rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", rows.astype(np.float16))
    found = _features(named, tmp_path / "out", text_npy=tmp_path / "text.npy")
    np.testing.assert_allclose(np.linalg.norm(found["text"], axis=1), 1, rtol=1e-6)
    expected = rows.astype(np.float16).astype(np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["text"], expected, rtol=1e-6)


def test_rows_of_every_size_are_scaled_to_length_1_and_zeros_stay(rows: np.ndarray) -> None:
    table = rows.astype(np.float32)
    sizes = np.float32([3e38, 1e30, 1e19, 1, 1e-3, 1e-20, 1e-30, 1e-38])[:, None]
    directions = np.abs(table[: len(sizes)]) / np.abs(table[: len(sizes)]).max(axis=1, keepdims=True)
    sized = directions * sizes
    exact = sized.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_rows(sized), exact, rtol=1e-6)
    np.testing.assert_array_equal(unit_rows(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))
    # Of other rows, every digit is what dividing by the length gives.
    np.testing.assert_array_equal(unit_rows(table), table / np.linalg.norm(table, axis=1, keepdims=True))


_NUMBERED = {
    "from 1, first and last lost": (range(1, ITEMS + 1), ITEMS, 1, False),
    "from 1 behind a row of padding": (range(1, ITEMS + 1), ITEMS + 1, 0, False),
    "from 0, first and last lost": (range(ITEMS), ITEMS, 0, False),
    "from 0 or 1, more rows than ids": (range(1, ITEMS + 1), ITEMS + 3, 0, True),
}


@pytest.mark.parametrize("case", _NUMBERED)
def test_where_ids_count_from_is_told_by_all_that_were_read(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids, length, first, doubtful = _NUMBERED[case]
    taken = [(user, item) for user in range(10) for item in ids[1:-1]] + [(0, ids[0]), (0, ids[-1])]
    pl.DataFrame(taken, schema=["user_id", "item_id"], orient="row").write_csv(tmp_path / "log.csv")
    pack(PackConfig(interactions=tmp_path / "log.csv", out=tmp_path / "shards", core=2, workers=1))
    packed = [int(item) for item in Dataset(tmp_path / "shards").item_ids]
    assert packed == list(ids[1:-1])
    rows = np.arange(length, dtype=np.float32)[:, None] + [0.5, 0]
    np.save(tmp_path / "image.npy", rows)
    found = _features(tmp_path / "shards", tmp_path / "out", image_npy=tmp_path / "image.npy", raw=True)
    np.testing.assert_array_equal(found["image"], rows[[item - first for item in packed]])
    assert ("taken as that of item 0" in caplog.text) == doubtful


@pytest.mark.parametrize("form", ["lists", "columns"])
def test_a_table_names_its_items(named: Path, rows: np.ndarray, tmp_path: Path, form: str) -> None:
    ids = Dataset(named).item_ids
    order = np.random.default_rng(1).permutation(ITEMS)
    shuffled = {"asin": [ids[item] for item in order]}
    if form == "lists":
        table = pl.DataFrame(shuffled | {"vector": rows[order].tolist()})
    else:
        table = pl.DataFrame(shuffled | {f"v{column}": rows[order][:, column] for column in range(5)})
    table.write_parquet(tmp_path / "text.parquet")
    settings = {"text_npy": tmp_path / "text.parquet", "item_column": "asin", "raw": True}
    found = _features(named, tmp_path / "out", **settings)
    np.testing.assert_array_equal(found["text"], rows.astype(np.float32))


def _nan(rows: np.ndarray) -> np.ndarray:
    return np.where(np.arange(ITEMS)[:, None] == 7, np.nan, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:9], "9 rows for 12 items, and item ids ('i00', ...) are not row numbers"),
        (_nan, "rows of 1 items in .* hold NaN or infinite values"),
        (lambda rows: rows[:, 0], r"is float64 \(12,\), expected numbers of shape"),
        (lambda rows: rows.astype(str), "expected numbers of shape"),
        (lambda rows: rows * 1e300, "hold NaN or infinite values"),
        (lambda rows: rows[:, :0], "expected numbers of shape"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_and_nothing_written(
    named: Path, rows: np.ndarray, tmp_path: Path, change: Any, message: str
) -> None:
    np.save(tmp_path / "text.npy", change(rows))
    with pytest.raises(UserError, match=message.replace("('i00', ...)", r"\('i00', \.\.\.\)")):
        _features(named, tmp_path / "out", text_npy=tmp_path / "text.npy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item": ["a"]}, "has no column 'item_id'"),
        ({"item_id": ["i00"], "v": [[1.0]]}, "none for 11 of 12 items"),
        ({"item_id": ["i00", "i00"], "v": [[1.0], [2.0]]}, "item 'i00' has several rows"),
        ({"item_id": ["i00", "i01"], "v": [[1.0], [2.0, 3.0]]}, "expected one length"),
        ({"item_id": ["i00"], "v": ["one"]}, "columns v of .* are not numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(named: Path, tmp_path: Path, table: Any, message: str) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "text.parquet")
    with pytest.raises(UserError, match=message):
        _features(named, tmp_path / "out", text_npy=tmp_path / "text.parquet")


def test_a_pickle_is_never_opened(named: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.array([{"a": 1}] * ITEMS, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        _features(named, tmp_path / "out", text_npy=tmp_path / "text.npy")


def test_a_run_on_arrays_trains_and_evaluates_and_its_encoder_cannot_be_tuned(
    numbered: Path, rows: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "image.npy", rows)
    np.save(tmp_path / "text.npy", rows[:, :3])
    arrays = [f"--{name}_npy={tmp_path / name}.npy" for name in ("image", "text")]
    out, features = str(tmp_path / "run"), str(tmp_path / "features")
    assert cli.main(["features", "--shards", str(numbered), *arrays, "--out", features]) == 0
    common = ["--shards", str(numbered), "--features", features, "--tracking.enabled", "false", "--device", "cpu"]
    assert cli.main(["stage1", *common, "--epochs", "1", "--out", out]) == 0
    assert cli.main(["evaluate", "--run", out, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert cli.main(["stage2", "--stage1", out, "--out", str(tmp_path / "tuned")]) == 2
    refusal = capsys.readouterr().err
    assert f"features: those of {out} came from arrays, which no encoder gives" in refusal
    assert f"{numbered} has nothing to read either: pack a catalogue with --items" in refusal
    assert cli.main(["joint", *common, "--out", str(tmp_path / "tuned")]) == 2
    assert f"features: those of {features} came from arrays, which no encoder gives" in capsys.readouterr().err
    assert cli.main(["features", "--shards", str(numbered), "--out", str(tmp_path / "none")]) == 2
    assert "--encoder.model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"garbage", "it is no array of numbers"),
        ("a.npy", b"PK\x03\x04garbage", "cannot read"),
        ("a.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (-2, 4), }", "cannot read"),
    ],
)
def test_what_is_no_array_is_refused_in_one_line(
    name: str, content: bytes, message: str, named: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.ljust(127) + b"\n")
    with pytest.raises(UserError, match=message) as error:
        read_array(tmp_path / name, "image_npy", Dataset(named))
    assert "pickle" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("v", [["x", "y"]], "hold String, expected numbers"),
        ("v", [[[1.0, 2.0]]], r"hold List\(Float64\), expected numbers"),
        ("item_id", [["a"]], r"column 'item_id' has type List\(String\); .*--item_column"),
    ],
)
def test_a_table_of_other_values_is_refused_in_one_line(
    column: str, values: list, message: str, named: Path, tmp_path: Path
) -> None:
    table = {"item_id": [f"i{item:02d}" for item in range(ITEMS)], "v": [[1.0, 2.0]] * ITEMS} | {column: values * ITEMS}
    pl.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        read_array(tmp_path / "a.parquet", "image_npy", Dataset(named))


def test_item_ids_that_became_floats_find_their_items(numbered: Path, rows: np.ndarray, tmp_path: Path) -> None:
    table = {"item_id": [float(item) for item in range(ITEMS)], "v": rows.tolist()}
    pl.DataFrame(table).write_parquet(tmp_path / "a.PARQUET")
    found, *_ = read_array(tmp_path / "a.PARQUET", "image_npy", Dataset(numbered))
    np.testing.assert_allclose(found, rows[[int(item) for item in Dataset(numbered).item_ids]], rtol=1e-6)
