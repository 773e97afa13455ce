"""Progress is a bar on a terminal, and whole lines elsewhere."""

import sys

import pytest

from ptmrec_dist.progress import Progress


def _three_steps(**settings: float) -> None:
    with Progress(total=3, desc="steps", unit="step", **settings) as bar:
        for _ in range(3):
            bar.update()


def test_a_log_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _three_steps(delay=0, mininterval=0)
    written = capsys.readouterr().err
    assert "\r" not in written
    assert [line.split(" [")[0] for line in written.splitlines()] == [f"steps: {done}/3" for done in (0, 1, 2, 3, 3)]


def test_short_work_leaves_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    _three_steps()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _three_steps(mininterval=0)
    written = capsys.readouterr().err
    assert "\rsteps: 100%|" in written
    assert written.count("\n") == 1
