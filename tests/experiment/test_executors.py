"""Processes that run an experiment's steps."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Project

_EXPERIMENT = """
import sys
from pathlib import Path
from ptmrec_dist.experiment.executors import run_locally
run_locally(sys.argv[2:], 1, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_experiment_that_is_ended_by_sigterm_ends_its_step_and_prints_no_warning(
    tiny_project: Project, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    step = ["stage1", "--shards", tiny_project.shards, "--features", tiny_project.features, "--out", out]
    options = ["--epochs", "100000", "--patience", "100000", "--device", "cpu", "--tracking.enabled", "false"]
    words = [sys.executable, "-c", _EXPERIMENT, log, *step, *options]
    with subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True) as experiment:
        while not (out / "history.jsonl").exists():
            assert experiment.poll() is None, log.read_text()
            time.sleep(0.2)
        experiment.send_signal(signal.SIGTERM)
        _, errors = experiment.communicate(timeout=300)  # all that can write there have ended
    assert experiment.returncode == -signal.SIGTERM
    assert "resource_tracker" not in errors
