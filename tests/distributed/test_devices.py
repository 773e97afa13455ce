"""Which device a process runs on, and that every command refuses one that it would not use."""

from pathlib import Path

import pytest
import torch

from ptmrec_dist import cli
from ptmrec_dist.distributed import join_world
from ptmrec_dist.errors import Fault, UserError

NEEDED = {
    "features": ["--shards", "s", "--encoder.model", "e", "--out", "OUT"],
    "stage1": ["--shards", "s", "--out", "OUT"],
    "stage2": ["--stage1", "s", "--out", "OUT"],
    "refit": ["--run", "r", "--out", "OUT"],
    "joint": ["--shards", "s", "--out", "OUT"],
    "contrastive": ["--shards", "s", "--encoder.model", "e", "--out", "OUT"],
    "experiment": ["--shards", "s", "--encoder.model", "e", "--out", "OUT"],
    "sweep": ["--stage1", "s", "--out", "OUT", "--space", "{epochs: {choice: [1]}}"],
    "evaluate": ["--run", "r"],
}


def test_every_command_with_a_device_is_tried_here() -> None:
    with_device = {name for name, command in cli.COMMANDS.items() if "device" in command.settings.__dataclass_fields__}
    assert with_device == NEEDED.keys()


@pytest.mark.parametrize("command", NEEDED)
@pytest.mark.parametrize("device", ["gpu", "cpuu", "mps", "CPU", "cuda:", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, device: str
) -> None:
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in NEEDED[command]]
    assert cli.run(command, [*arguments, f"--device={device}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"device: got {device!r}, expected auto, cpu" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "more"), [("sweep", []), ("experiment", ["--ranks", "2"]), ("experiment", ["--ray.cpus", "1"])]
)
def test_a_numbered_gpu_is_refused_where_ranks_have_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, more: list[str]
) -> None:
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in NEEDED[command]]
    assert cli.run(command, [*arguments, *more, "--device", "cuda:1"]) == 2
    assert "device: got 'cuda:1', expected auto, cpu or cuda" in capsys.readouterr().err


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _show_gpus(monkeypatch, 2)


def _show_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    _show_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=f"device: got {device}, but PyTorch sees no GPU here; expected cpu or auto"):
        join_world(device)
    assert join_world("auto").device == torch.device("cpu")


def test_the_library_refuses_an_unknown_device_too() -> None:
    with pytest.raises(UserError, match="device: got 'gpu', expected auto, cpu, cuda or cuda:N"):
        join_world("gpu")


def test_one_process_uses_the_gpu_that_is_named(two_gpus: None) -> None:
    assert join_world("cuda:1").device == torch.device("cuda", 1)
    assert join_world("cuda").device == join_world("auto").device == torch.device("cuda", 0)
    with pytest.raises(UserError, match=r"got cuda:2, expected cuda:0 to cuda:1"):
        join_world("cuda:2")


def test_each_of_several_ranks_uses_the_gpu_of_its_local_rank(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"device: got cuda:1 for 4 ranks, .* use --device cuda"):
        join_world("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(Fault, match="local rank 2 has no GPU of its own: PyTorch sees 2 here; start at most 2 ranks"):
        join_world("auto")
