"""Ranks that generate different numbers from one seed would train on different batches unnoticed: they are refused."""

import os
from pathlib import Path

import pytest
import torch

from tests.conftest import Project
from tests.ranks import command_on_rank, exit_codes_on_ranks


def _stage1(arguments: list[str], logs: Path, differs: str) -> None:
    """Stage 1 on a rank; rank 1 behaves as a GPU of another model would."""
    if os.environ["RANK"] == "1" and differs == "order":
        own = torch.randperm
        torch.randperm = lambda *inputs, **named: own(*inputs, **named).flip(0)  # type: ignore[assignment]
    if os.environ["RANK"] == "1" and differs == "uniform numbers":
        rand = torch.rand
        torch.rand = lambda *inputs, **named: rand(*inputs, **named).roll(1)  # type: ignore[assignment]
    command_on_rank("stage1", arguments, logs)


@pytest.mark.slow
@pytest.mark.parametrize("differs", ["order", "uniform numbers"])
def test_a_rank_with_other_random_numbers_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, differs: str
) -> None:
    out = tmp_path / "run"
    arguments = [
        *("--shards", str(tiny_project.shards), "--recommender", "lightgcn", "--out", str(out), "--epochs", "1"),
        *("--batch_size", "128", "--device", "cpu", "--tracking.enabled", "false"),
    ]
    assert exit_codes_on_ranks(2, _stage1, arguments, tmp_path, differs) == [2, 2]
    said = (tmp_path / "rank0").read_text()
    assert "error: device: rank 1 generates other random numbers than rank 0 from the same seed" in said
    assert "Traceback" not in said
    assert not out.exists()
    if differs == "order":
        assert exit_codes_on_ranks(2, _stage1, arguments, tmp_path, "alike") == [0, 0]
