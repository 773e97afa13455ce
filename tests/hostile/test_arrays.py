"""Feature arrays of any bytes: a row for each item, or one line."""

import io
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from ptmrec_dist.data.arrays import read_array
from ptmrec_dist.data.dataset import Dataset
from tests.conftest import Project
from tests.hostile.cases import JSON, damaged, for_all, nothing_else_in, refused_in_one_line

_TYPES = [
    "'<f4'",
    "'>f8'",
    "'<i8'",
    "'|O'",
    "'<U4'",
    "'<c8'",
    "'|b1'",
    "'|V8'",
    "'<M8[s]'",
    "[('a', '<f4')]",
    "'x'",
    "3",
]
_SHAPES = [
    "(60, 4)",
    "(60,)",
    "()",
    "(60, 0)",
    "(0, 4)",
    "(60, 4, 1)",
    f"({2**40}, 4)",
    f"(60, {2**62})",
    "(-60, 4)",
    "60",
]
_EXTRA = ["", ", 'x': 1", ", 'shape': (60, 4)", ", '': " + "[" * 5000]


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npy(version: tuple[int, int], kind: str, shape: str, order: str, extra: str, data: bytes) -> bytes:
    """A file with such a header, whose length is right."""
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}{extra}}}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def _tables() -> list[bytes]:
    """Parquet tables of features in the forms that are read."""
    ids, rows = [f"i{item}" for item in range(60)], np.random.default_rng(0).random((60, 4))
    lists = pl.DataFrame({"item_id": ids, "vector": rows.tolist()})
    arrays = lists.with_columns(pl.col("vector").list.to_array(4))
    wide = pl.DataFrame({"item_id": ids} | {f"x{column}": rows[:, column] for column in range(4)})
    buffers = [io.BytesIO() for _ in range(3)]
    for table, buffer in zip((lists, arrays, wide), buffers):
        table.write_parquet(buffer)
    return [buffer.getvalue() for buffer in buffers]


def _parquet(rows: list[object]) -> bytes:
    """A table with any values in the place of numbers."""
    buffer = io.BytesIO()
    table = pl.DataFrame({"item_id": [f"i{item}" for item in range(len(rows))]})
    try:
        table.with_columns(vector=pl.Series(rows, strict=False)).write_parquet(buffer)
    except pl.exceptions.PolarsError:  # values that Parquet does not have
        table.with_columns(vector=pl.Series(list(map(str, rows)))).write_parquet(buffer)
    return buffer.getvalue()


_NPY = st.one_of(
    damaged([_saved(np.random.default_rng(0).random((60, 4)).astype(kind)) for kind in ("f4", "f8", "i4")]),
    st.builds(
        _npy,
        st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
        st.sampled_from(_TYPES),
        st.sampled_from(_SHAPES),
        st.sampled_from(["False", "True", "None", "2"]),
        st.sampled_from(_EXTRA),
        st.integers(0, 1000).map(bytes),
    ),
)
_NUMBERS = st.lists(
    st.one_of(st.lists(st.floats(), max_size=4), st.none(), st.lists(st.none(), max_size=2)), max_size=4
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_arrays_of_any_bytes_are_rows_of_all_items_or_refused(
    cases: int, kind: str, tiny_project: Project, tmp_path: Path
) -> None:
    dataset, path = Dataset(tiny_project.shards), tmp_path / f"image.{kind}"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with nothing_else_in(tmp_path), refused_in_one_line():
            table, *_ = read_array(path, "image_npy", dataset)
            assert table.dtype == np.float32
            assert len(table) == dataset.num_items
            assert np.isfinite(table).all()

    written = st.one_of(_NUMBERS, st.lists(JSON, max_size=3)).map(_parquet)
    for_all(_NPY if kind == "npy" else st.one_of(damaged(_tables()), written), check, cases)
