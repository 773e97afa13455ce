"""Commands as a user gives them."""

import pytest

from ptmrec_dist.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one-line error message of a refused command; its exit code is 2."""
    assert main(list(command)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ptmrec")]
    assert len(lines) == 1
    return lines[0]
