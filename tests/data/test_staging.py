"""Replacing a folder: whole or not at all, and never one that holds something else."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ptmrec_dist.data.manifest import SCHEMA_VERSION, Manifest
from ptmrec_dist.data.packing.staging import check_replaceable
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import staged
from ptmrec_dist.lock import locked


def _packed(folder: Path) -> Path:
    folder.mkdir()
    interactions = {"train": 0}
    Manifest(SCHEMA_VERSION, "f", "random", 0, 5, 0, 0, (), None, interactions, (), {}, {}).write(folder)
    return folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as fresh:
        (fresh / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["a"]


def test_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    _packed(tmp_path / "out")
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out") as fresh:
        (fresh / "none" / "a").write_text("a")
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["manifest.json"]


def test_leftovers_of_a_killed_run_are_no_obstacle(tmp_path: Path) -> None:
    _packed(tmp_path / "out")
    for leaving in (".out.new", ".out.old"):
        (tmp_path / leaving / "interactions").mkdir(parents=True)
    with staged(tmp_path / "out") as fresh:
        assert _names(fresh) == []
    assert _names(tmp_path) == ["out"]


def test_packed_and_empty_and_new_folders_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (_packed(tmp_path / "packed"), tmp_path / "empty", tmp_path / "new"):
        check_replaceable(folder)


def test_what_is_not_a_packed_data_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text('{"mine": true}')
    (_packed(tmp_path / "mixed") / "notes.txt").write_text("mine")
    for name, message in {"file": "is a file", "notes": "not a packed data set", "mixed": "'notes.txt'"}.items():
        with pytest.raises(UserError, match=message):
            check_replaceable(tmp_path / name)


@pytest.mark.parametrize("writer", [staged, locked])
def test_a_file_in_the_way_of_an_output_is_named(
    writer: Callable[[Path], AbstractContextManager[object]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    in_the_way = re.escape(f"but {tmp_path / 'file'} is a file, expected a folder; choose another --out")
    with pytest.raises(UserError, match=rf"out: got .*/file/a/out, {in_the_way}"), writer(tmp_path / "file/a/out"):
        pass
