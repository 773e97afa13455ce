"""Files that ranks write: what happens on the others where one cannot."""

import contextlib
from pathlib import Path

import pytest
import torch

from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.errors import Fault, UserError
from tests.ranks import run_on_ranks


def _errors(error: Exception) -> str:
    """What this rank raises where the last one fails within the block."""
    world = join_world("cpu")
    try:
        with writing(world, "the file", "the one before is kept"):
            if world.rank == world.size - 1:
                raise error
    except (UserError, Fault) as found:
        return f"{type(found).__name__}: {found}"
    return ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(28, "No space left on device"),
            "Fault: cannot write the file ([Errno 28] No space left on device); the one before is kept; make room if the disk "
            "is full, and run the same command again",
        ),
        (UserError("user_id: got 1 unknown"), "UserError: user_id: got 1 unknown"),
    ],
)
def test_an_error_of_one_rank_is_raised_by_all(error: Exception, expected: str) -> None:
    assert run_on_ranks(2, _errors, error) == [expected] * 2


def test_what_a_failed_rank_has_begun_is_removed(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    with contextlib.suppress(Fault), writing(World(0, 1, torch.device("cpu")), "it", "nothing is lost", fresh):
        fresh.mkdir()
        (fresh / "half").write_text("half")
        raise OSError
    assert not fresh.exists()
