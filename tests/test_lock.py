"""One command at a time writes an output: the second names the holder, and a lock left by a killed process does not block."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import COVERED_BY, Owner, exclusive_out, lock_file, locked
from tests.conftest import REPOSITORY

_HOLD = """
import sys
from pathlib import Path
from ptmrec_dist.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _held_elsewhere(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `out` until its standard input is closed."""
    command = [sys.executable, "-c", _HOLD, str(out)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_is_refused_in_one_line_with_host_process_and_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with _held_elsewhere(out) as process:
        owner = json.loads(lock_file(out).read_text())
        with pytest.raises(UserError) as raised, locked(out):
            pass
        host = socket.gethostname()
        line = f"out: {out} is in use by process {process.pid} on {host} since {owner['since']}; wait until it ends or choose "
        assert str(raised.value) == f"{line}another --out"
        process.communicate()
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_left_that_was_killed_while_it_took_the_lock_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    begun = lock_file(out).name + f".{socket.gethostname()}."
    running = tmp_path / f"{begun}{os.getppid()}"
    for left in (tmp_path / f"{begun}{process.pid}", running):
        left.write_text("{")
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == [running]


def test_links_and_relative_paths_name_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for other in (Path("link"), Path("real"), tmp_path / "real" / ".." / "real"):
        with locked(tmp_path / "real"), pytest.raises(UserError, match="is in use by process"), locked(other):
            pass


def test_what_a_killed_process_leaves_is_taken_over_even_while_nobody_has_reaped_it(tmp_path: Path) -> None:
    with _held_elsewhere(tmp_path / "run") as process:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: ended, but its id is not free yet
        assert lock_file(tmp_path / "run").exists()
        with locked(tmp_path / "run"):
            assert json.loads(lock_file(tmp_path / "run").read_text())["pid"] == os.getpid()
    assert not lock_file(tmp_path / "run").exists()


def _write(out: Path, owner: Owner) -> None:
    lock_file(out).write_text(json.dumps(asdict(owner)))


def test_an_id_that_was_used_again_does_not_own_the_lock(tmp_path: Path) -> None:
    this = Owner.this_process()
    assert this.started is not None
    _write(tmp_path / "run", replace(this, started="another boot, another tick"))
    with locked(tmp_path / "run"):
        assert json.loads(lock_file(tmp_path / "run").read_text())["started"] == this.started


def test_a_lock_of_another_host_is_refused_with_the_file_to_delete(tmp_path: Path) -> None:
    _write(tmp_path / "run", replace(Owner.this_process(), host="elsewhere", pid=7))
    lock = lock_file(tmp_path / "run")
    with (
        pytest.raises(UserError, match=rf"by process 7 on elsewhere since .*if it no longer runs there, delete {lock}"),
        locked(tmp_path / "run"),
    ):
        pass
    assert lock.exists()
    lock.write_text("{}")
    with pytest.raises(UserError, match=f"{lock} is not readable as a lock; delete it"), locked(tmp_path / "run"):
        pass


def _take(out: Path, ready: Any, results: Any, release: Any) -> None:
    ready.wait()
    try:
        with locked(out):
            results.put("held")
            release.wait()
    except UserError as error:
        results.put(str(error))


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path: Path, stale: bool) -> None:
    out, count = tmp_path / "run", 6
    if stale:
        _write(out, replace(Owner.this_process(), started="another boot, another tick"))
    context = multiprocessing.get_context("fork")
    ready, results, release = context.Barrier(count), context.Queue(), context.Event()
    processes = [context.Process(target=_take, args=(out, ready, results, release)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    release.set()
    for process in processes:
        process.join()
    assert found.count("held") == 1
    assert sum("is in use by process" in one for one in found) == count - 1
    assert list(tmp_path.iterdir()) == []


def test_a_refused_command_leaves_no_folder_behind_and_a_result_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b" / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "b" / "run").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "run"]


def _command(tmp_path: Path, note: Callable[[], None]) -> None:
    @exclusive_out
    def command(config: Any) -> None:
        note()

    command(type("Settings", (), {"out": tmp_path / "outer" / "run"}))


def test_other_ranks_and_steps_of_a_locked_experiment_take_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    (tmp_path / "outer").mkdir()

    def note() -> None:
        seen.append([path.name for path in (tmp_path / "outer").iterdir()])

    _command(tmp_path, note)
    monkeypatch.setenv("RANK", "1")
    _command(tmp_path, note)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(COVERED_BY, str(tmp_path / "outer"))
    _command(tmp_path, note)
    assert seen == [[".run.lock"], [], []]
