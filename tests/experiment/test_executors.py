"""Processes that run an experiment's steps."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pytest

from ptmrec_dist.experiment.executors import end_running, run_locally
from tests.conftest import Project

_EXPERIMENT = """
import sys
from pathlib import Path
from ptmrec_dist.experiment.executors import run_locally
run_locally(sys.argv[2:], 1, Path(sys.argv[1]))
"""


def _endless(project: Project, out: Path) -> list[str]:
    step = ["stage1", "--shards", project.shards, "--features", project.features, "--out", out]
    options = ["--epochs", "100000", "--patience", "100000", "--device", "cpu", "--tracking.enabled", "false"]
    return [*map(str, step), *options]


@pytest.mark.slow
def test_exit_codes_of_steps_that_end_and_start_at_once_are_all_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = forkserver.read_signed

    def read_late(descriptor: int) -> int:
        threading.Event().wait(0.02)  # other threads would read, too
        return read(descriptor)

    monkeypatch.setattr(forkserver, "read_signed", read_late)
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda name: run_locally(["--help"], 1, tmp_path / str(name)), range(24)))
    assert codes == [0] * 24


@pytest.mark.slow
def test_a_running_step_that_is_asked_to_end_saves_a_checkpoint(tiny_project: Project, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(run_locally, _endless(tiny_project, out), 1, log)
        while not (out / "history.jsonl").exists():
            assert not code.done(), log.read_text()
            time.sleep(0.2)
        end_running()
        assert code.result(timeout=300) == 0
    assert re.search(r"interrupted at step \d+; run the same command to resume\n$", log.read_text())
    assert list((out / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_experiment_lets_its_running_step_save_a_checkpoint(
    number: signal.Signals, tiny_project: Project, tmp_path: Path
) -> None:
    out, run = tmp_path / "out", tmp_path / "out" / "runs" / "bpr-none-frozen-seed0"
    words = ["experiment", "--shards", tiny_project.shards, "--recommenders", "bpr", "--paradigms", "frozen"]
    words += ["--seeds", "0", "--stage1", "{epochs: 100000, patience: 100000}", "--device", "cpu", "--out", out]
    command = [Path(sys.executable).with_name("ptmrec"), *map(str, words), "--tracking.enabled", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as experiment:
        while not (run / "history.jsonl").exists():
            assert experiment.poll() is None
            time.sleep(0.2)
        os.killpg(experiment.pid, number)  # as a terminal sends it
        _, errors = experiment.communicate(timeout=100)
    assert errors.endswith("ptmrec experiment: interrupted; run the same command again\n")
    assert experiment.returncode == 128 + number
    log = (out / "logs" / f"{run.name}.log").read_text()
    assert "interrupted at step" in log
    assert "Warning" not in log
    assert list((run / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_an_experiment_that_is_ended_by_sigterm_ends_its_step_and_prints_no_warning(
    tiny_project: Project, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    words = [sys.executable, "-c", _EXPERIMENT, str(log), *_endless(tiny_project, out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as experiment:
        while not (out / "history.jsonl").exists():
            assert experiment.poll() is None, log.read_text()
            time.sleep(0.2)
        experiment.send_signal(signal.SIGTERM)
        _, errors = experiment.communicate(timeout=300)  # all that can write there have ended
    assert experiment.returncode == -signal.SIGTERM
    assert "resource_tracker" not in errors
