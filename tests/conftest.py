"""What several rooms of tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a folder of real data; the test is skipped where it is absent."""
    root = Path(os.environ.get("PTMREC_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data {name!r} is absent from {root}; set PTMREC_DATA to the folder that has it")
        return root / name

    return find


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
