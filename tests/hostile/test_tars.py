"""Tars of any members: the items that were packed, or a count of those that are lost; nothing is unpacked anywhere."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemStream
from tests.conftest import Project
from tests.hostile.cases import damaged, for_all, nothing_else_in, refused_in_one_line

_READER = Reader(
    load_image=lambda image: torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1),
    tokenize=lambda texts: torch.tensor([[len(text)] for text in texts]),
)
_NAMES = st.sampled_from([
    *("../../outside.txt", "CANARY/outside.jpg", "..", "000000001.jpg", "000000001.txt", "999999999.jpg", "-1.jpg", "x.jpg"),
    *("000000001", ".jpg", "a/b/000000001.jpg", "000000001.tar", "\u0661.jpg", "000000000.jpg.gz", "1e3.txt", "__worker__.py"),
])  # fmt: skip
_KINDS = st.sampled_from([
    tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.XHDTYPE
])  # fmt: skip
_MEMBERS = st.lists(st.tuples(_NAMES, _KINDS, st.binary(max_size=40), st.booleans()), max_size=6)


def _with_members(original: bytes, members: list[tuple[str, bytes, bytes, bool]]) -> bytes:
    """The original tar with members put before and after its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar, tarfile.open(fileobj=io.BytesIO(original)) as own:
        for first in (True, False):
            for name, kind, content, before in members:
                if before == first:
                    described = tarfile.TarInfo(name.replace("CANARY", str(Path.cwd())))  # a watched folder
                    described.type, described.linkname = kind, "../../outside.txt"
                    described.size = len(content) if kind == tarfile.REGTYPE else 0
                    tar.addfile(described, io.BytesIO(content))
            if first:
                for member in own:
                    tar.addfile(member, own.extractfile(member))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_a_tar_of_any_members_gives_what_was_packed_or_a_fault(
    cases: int, tiny_project: Project, tmp_path: Path
) -> None:
    shutil.copytree(tiny_project.shards, tmp_path / "shards")
    dataset = Dataset(tmp_path / "shards")
    path = dataset.shard_paths()[0]
    original = path.read_bytes()
    wanted = dataset.item_shards == 0
    expected = {item: len(dataset.texts[item]) for item in np.flatnonzero(wanted)}

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with nothing_else_in(tmp_path), nothing_else_in(tmp_path / "shards"), refused_in_one_line():
            stream = ItemStream(dataset, 0, 1, 4, _READER, wanted=wanted, max_damaged=0.5)
            _check_items(list(stream.epoch(0)), expected)
        with nothing_else_in(tmp_path), nothing_else_in(tmp_path / "shards"), refused_in_one_line():
            files = ItemFiles(dataset, _READER, max_damaged=0.99)
            _check_items([files.read(np.arange(dataset.num_items))], dict(enumerate(map(len, dataset.texts))))

    hostile = _MEMBERS.map(lambda members: _with_members(original, members))
    for_all(st.one_of(hostile, damaged([original])), check, cases)


def _check_items(batches: list, expected: dict[int, int]) -> None:
    for batch in batches:
        found = dict(zip(batch.items.tolist(), batch.texts[:, 0].tolist(), strict=True))
        assert found.items() <= expected.items()
