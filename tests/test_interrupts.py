"""Ctrl-C and SIGTERM: one line, the exit code of the signal, nothing half-written, and the same command starts again."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from ptmrec_dist import cli
from ptmrec_dist.processes import Terminated, raising_on_sigterm
from tests.conftest import REPOSITORY, Project

_PTMREC = [sys.executable, "-c", "import sys; from ptmrec_dist.cli import main; sys.exit(main())"]


def _packing(project: Project, out: Path) -> subprocess.Popen[str]:
    tables = ["--items", project.source / "items.csv", "--interactions", project.source / "interactions.csv"]
    words = ["pack", *tables, "--out", out, "--core", "2", "--workers", "2"]
    return subprocess.Popen([*_PTMREC, *map(str, words)], stderr=subprocess.PIPE, text=True, start_new_session=True)


_INTERRUPTED_AT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                if {swallowed}:
                    return
                raise

sys.meta_path.insert(0, Interrupts())
from {entry} import {function}
sys.exit({function}())
"""


def _interrupted_at(module: str, *words: object, swallowed: bool = False) -> tuple[int, str]:
    """Exit code and messages of `ptmrec`, with Ctrl-C when a module is imported, by libraries that may take it for an error."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    entry, function = scripts["ptmrec"].split(":")
    code = _INTERRUPTED_AT.format(module=module, swallowed=swallowed, entry=entry, function=function)
    command = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("module", ["ptmrec_dist.cli", "ptmrec_dist.config", "yaml", "ptmrec_dist.storage"])
def test_ctrl_c_while_the_command_line_is_imported_is_one_line(module: str) -> None:
    assert _interrupted_at(module, "pack") == (130, "ptmrec: interrupted; run the same command again\n")


def test_ctrl_c_while_the_libraries_of_a_command_are_imported_waits_for_them(tmp_path: Path) -> None:
    """Some take it for an error of theirs, and leave a module half-imported."""
    words = ("pack", "--interactions", tmp_path / "none.csv", "--out", tmp_path / "out")
    interrupted = (130, "ptmrec pack: interrupted; run the same command again\n")
    assert _interrupted_at("numpy", *words, swallowed=True) == interrupted


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_command_that_is_interrupted_says_so_leaves_nothing_and_starts_again(
    number: signal.Signals, send: object, tiny_project: Project, tmp_path: Path
) -> None:
    """Ctrl-C reaches all processes at once, those too that are just being started; a scheduler's signal the first alone."""
    assert callable(send)
    out = tmp_path / "shards"
    with _packing(tiny_project, out) as pack:
        while not (tmp_path / ".shards.new" / "spool").exists():
            assert pack.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # its workers are importing what they need
        send(pack.pid, number)
        _, errors = pack.communicate(timeout=60)
    assert errors == "ptmrec pack: interrupted; run the same command again\n"
    assert pack.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []
    with _packing(tiny_project, out) as pack:
        assert pack.wait(timeout=60) == 0


def test_of_several_ranks_the_first_says_that_they_were_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_function", lambda path: interrupt)
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.run("demo", []) == 130
        said.append(capsys.readouterr().err)
    assert said == ["ptmrec demo: interrupted; run the same command again\n", ""]


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    handlers = []
    with raising_on_sigterm(Terminated):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Terminated:
            handlers.append(signal.getsignal(signal.SIGTERM))
    assert handlers == [signal.SIG_DFL]


def test_a_handler_of_sigterm_that_is_there_is_kept() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with raising_on_sigterm(Terminated):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
