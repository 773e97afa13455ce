"""Nothing half done: a command killed at any moment and run again leaves what an undisturbed one leaves, and nothing else.

`pytest -m slow tests/test_kills.py` kills some commands once; `pytest -m fuzz tests/test_kills.py` each twenty times.
"""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from ptmrec_dist import cli
from tests.conftest import Project
from tests.data.small_catalogue import folder_bytes
from tests.ranks import PRELOAD

_PATIENCE = 60
_MEASURED = "efficiency.json"
"""Times and memory, which differ from run to run."""
_QUIET = ("--tracking.enabled", "false")
_EPOCHS = ("--epochs", "3", "--batch_size", "64", "--device", "cpu", *_QUIET)


@dataclass(frozen=True)
class Inputs:
    """What the commands read."""

    project: Project
    tuned: Path
    """A run of stage 2."""
    source: Path
    """A data set as published."""


Command = Callable[[Inputs, Path], list[str]]

COMMANDS: dict[str, Command] = {
    "import": lambda made, out: ["import", "movielens", "--source", f"{made.source}", "--out", f"{out}"],
    "pack": lambda made, out: [
        *("pack", "--items", f"{made.project.source}/items.csv", "--out", f"{out}"),
        *("--interactions", f"{made.project.source}/interactions.csv", "--core", "2", "--workers", "1"),
    ],
    "features": lambda made, out: [
        *("features", "--shards", f"{made.project.shards}", "--encoder.model", f"{made.project.clip}"),
        *("--out", f"{out}", "--device", "cpu"),
    ],
    "stage1": lambda made, out: [
        *("stage1", "--shards", f"{made.project.shards}", "--features", f"{made.project.features}"),
        *("--recommender", "vbpr", "--out", f"{out}", "--checkpoint_every", "1", *_EPOCHS),
    ],
    "stage2": lambda made, out: ["stage2", *_stage2(made.project, out)],
    "refit": lambda made, out: [
        *("refit", "--run", f"{made.tuned}", "--out", f"{out}", "--checkpoint_every", "1", *_EPOCHS),
    ],
    "joint": lambda made, out: [
        *("joint", "--shards", f"{made.project.shards}", "--features", f"{made.project.features}", "--out", f"{out}"),
        *("--recommender", "vbpr", "--prompt.depth", "1", "--checkpoint_every", "1", *_EPOCHS),
    ],
    "contrastive": lambda made, out: [
        *("contrastive", "--shards", f"{made.project.shards}", "--encoder.model", f"{made.project.clip}"),
        *("--out", f"{out}", "--batch_size", "20", "--epochs", "2", "--checkpoint_every", "1", "--device", "cpu", *_QUIET),
    ],
    "export": lambda made, out: ["export", "--run", f"{made.tuned}", "--format", "open_clip", "--out", f"{out}"],
}  # fmt: skip


def _stage2(project: Project, out: Path) -> list[str]:
    rest = ("--prompt.depth", "1", "--prompt.length", "2", "--checkpoint_every", "2", "--keep", "last")
    return ["--stage1", f"{project.stage1}", "--out", f"{out}", *rest, *_EPOCHS[:-4], "--device", "cpu", *_QUIET]


@pytest.fixture(scope="module")
def inputs(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    assert cli.run("stage2", _stage2(tiny_project, folder / "tuned")) == 0
    rng, source = np.random.default_rng(0), folder / "ml"
    source.mkdir()
    (source / "movies.dat").write_text("".join(f"{film}::Film {film} (1990)::Drama\n" for film in range(1, 2000)))
    rows = rng.integers(1, 2000, (20_000, 2))
    (source / "ratings.dat").write_text("".join(f"{user}::{film}::4::97{user:07}\n" for user, film in rows))
    return Inputs(tiny_project, folder / "tuned", source)


def _command(words: list[str], log: Path) -> None:
    """Run a command in this process and exit with its code."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os._exit(cli.run(words[0], words[1:]))


def _run(words: list[str], folder: Path, log: Path, kill_at: int | None = None) -> tuple[int | None, int]:
    """Run a command; give its exit code and how often the files below the folder were seen to change.

    Args:
        words: Command line.
        folder: Folder that is watched.
        log: File for what the command prints.
        kill_at: Changes after which the process gets SIGKILL.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_command, args=(words, log))
    process.start()
    changes, before = 0, _state(folder)
    while process.is_alive():
        now = _state(folder)
        if now != before:
            changes, before = changes + 1, now
            if changes == kill_at:
                _kill(process.pid)
        os.sched_yield()
    process.join()
    return process.exitcode, changes


def _kill(pid: int | None) -> None:
    """Kill a process alone, and wait until those that it had started have noticed."""
    assert pid is not None
    started = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=_PATIENCE)
    assert not alive, alive


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and number."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(place, name))
            except FileNotFoundError:
                continue  # gone since it was listed
            found[os.path.join(place, name)] = (status.st_size, status.st_ino)
    return found


def _left(folder: Path) -> dict[str, bytes]:
    """All files, and empty folders, without what measures this machine."""
    empty = {
        f"{path.relative_to(folder)}/": b"" for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())
    }
    return {name: data for name, data in folder_bytes(folder).items() if Path(name).name != _MEASURED} | empty


def _check(command: str, inputs: Inputs, folder: Path, kills: int) -> None:
    rng, log, place = random.Random(command), folder / "log", folder / "place"
    words = COMMANDS[command](inputs, place / "out")
    place.mkdir()
    code, changes = _run(words, place, log)
    assert code == 0, log.read_text()
    expected = _left(place)
    assert expected
    for number in range(kills):
        shutil.rmtree(place / "out")
        moment = rng.randint(1, changes)
        while _run(words, place, log, kill_at=moment)[0] != -signal.SIGKILL:  # it had ended: fewer changes were seen
            shutil.rmtree(place / "out")
            moment = max(1, moment // 2)
        code, _ = _run(words, place, log)
        assert code == 0, log.read_text()
        found = _left(place)
        assert found.keys() == expected.keys(), number
        assert [name for name in expected if found[name] != expected[name]] == [], number


@pytest.mark.slow
@pytest.mark.parametrize("command", ["import", "pack", "features", "stage2", "refit", "export"])
def test_a_killed_command_that_is_run_again_leaves_the_same_bytes(command: str, inputs: Inputs, tmp_path: Path) -> None:
    _check(command, inputs, tmp_path, kills=1)


@pytest.mark.fuzz
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_at_twenty_moments_leaves_the_same_bytes(command: str, inputs: Inputs, tmp_path: Path) -> None:
    _check(command, inputs, tmp_path, kills=20)
