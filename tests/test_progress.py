"""Progress is a bar on a terminal, and whole lines elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from ptmrec_dist.progress import Progress


def _three_steps(**settings: float) -> None:
    with Progress(total=3, desc="steps", unit="step", **settings) as bar:
        for _ in range(3):
            bar.update()


def test_a_log_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _three_steps(every=0)
    written = capsys.readouterr().err
    assert "\r" not in written
    lines = [line.split(" [")[0] for line in written.splitlines()]
    assert (lines[0], lines[-1]) == ("steps: 0/3", "steps: 3/3")


def test_a_bar_within_another_leaves_no_control_characters_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=1, desc="outer", bar_format="{desc}", every=0):
        _three_steps(every=0, leave=False)
    written = capsys.readouterr().err
    assert "\x1b" not in written
    assert written.startswith("outer\nsteps: 0/3")
    assert "" not in written.splitlines()


def test_a_log_gets_no_line_soon_after_another_of_any_bar(capsys: pytest.CaptureFixture[str]) -> None:
    _three_steps(every=0)
    capsys.readouterr()
    _three_steps()
    assert capsys.readouterr().err == ""


def test_many_short_bars_leave_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10**6, 7))
    monkeypatch.setattr("ptmrec_dist.progress.time.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("ptmrec_dist.progress._Lines.last", 0.0)
    for _ in range(40):
        _three_steps()
    assert 2 <= len(capsys.readouterr().err.splitlines()) <= 40


def test_a_terminal_gets_a_bar_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _three_steps(mininterval=0)
    written = capsys.readouterr().err
    assert "\rsteps: 100%|" in written
    assert written.count("\n") == 1


def test_a_line_reaches_a_file_before_the_process_ends(tmp_path: Path) -> None:
    code = "import os; from ptmrec_dist.progress import Progress; Progress.line('epoch 1: done'); os._exit(0)"
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "epoch 1: done\n"
