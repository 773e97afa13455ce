"""What a command finds in its `--out` before it writes there."""

from pathlib import Path

import pytest

from ptmrec_dist.lineage import INPUTS_FILE, is_foreign


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        ((), False),
        ((INPUTS_FILE,), False),
        ((f"{INPUTS_FILE}.new",), False),
        ((INPUTS_FILE, "sweep.yaml.new"), False),
        (("thesis.txt",), True),
        ((INPUTS_FILE, "thesis.txt"), True),
    ],
)
def test_what_a_command_leaves_that_is_killed_at_its_start_is_its_own(
    names: tuple[str, ...], foreign: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert is_foreign(tmp_path) == foreign


def test_a_file_is_not_an_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert is_foreign(tmp_path / "out")
    assert not is_foreign(tmp_path / "nothing")
