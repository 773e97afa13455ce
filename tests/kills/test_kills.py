"""Nothing half done: a command killed at any moment and run again leaves what an undisturbed one leaves, and nothing else.

`pytest -m slow tests/kills` kills some commands once, `pytest -n 0 -s -m kills tests/kills` each twenty times.
"""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptmrec_dist import cli
from tests.conftest import Project
from tests.kills.commands import CASES, READ_ONLY, Case
from tests.kills.inputs import Inputs, made
from tests.kills.outcome import in_store, left
from tests.kills.running import Ended, Moment, log_of, run, start_server

FEW, MANY = 1, int(os.environ.get("PTMREC_KILLS", "20"))


def test_every_command_that_writes_is_killed() -> None:
    killed = {name.partition(":")[0] for name in CASES}
    missing = cli.COMMANDS.keys() - killed - READ_ONLY.keys()
    assert not missing, f"no case kills {', '.join(missing)}"
    assert killed <= cli.COMMANDS.keys() - READ_ONLY.keys()


@pytest.fixture(scope="module")
def inputs(tiny_project: Project, empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    start_server()
    with made(tiny_project, empty_sqlite, tmp_path_factory.mktemp("inputs")) as found:
        yield found


class _Try:
    """A command in a folder that is as it was before it, over and over."""

    def __init__(self, case: Case, inputs: Inputs, folder: Path) -> None:
        self._case, self._inputs, self._folder = case, inputs, folder / "place"

    def begin(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        if self._case.before is not None:
            self._case.before(self._inputs, self._folder)

    def run(self, moment: Moment | None = None) -> Ended:
        store = f"sqlite:///{self._folder}/mlflow.db"
        words = self._case.words(self._inputs, self._folder)
        ended = run(words, self._folder, self._case.ranks, self._case.setup, moment, MLFLOW_TRACKING_URI=store)
        if (self._folder / "mlflow.db").is_file():
            in_store(self._folder)
        assert ended.code in (0, 2 * self._case.once, -signal.SIGKILL), log_of(self._folder).read_text()[-3000:]
        return ended

    def left(self) -> dict[str, object]:
        return {name: value for name, value in left(self._folder).items() if name not in self._case.unequal}


def _check(name: str, inputs: Inputs, folder: Path, kills: int) -> None:
    tried = _Try(CASES[name], inputs, folder)
    tried.begin()
    undisturbed = tried.run()
    expected = tried.left()
    rng, before, after = random.Random(name), 0, 0
    while before < kills:
        assert after < 5 * kills, "the undisturbed run was far slower than those that were to be killed"
        tried.begin()
        if before % 2 == 0:
            moment = Moment(change=rng.randint(1, undisturbed.changes))
        else:
            moment = Moment(seconds=rng.uniform(0, undisturbed.seconds))
        killed = tried.run(moment).code != 0
        before, after = before + killed, after + (not killed)
        if killed:
            found = tried.left()
            if not CASES[name].once or found != expected:
                tried.run()
                found = tried.left()
            assert found.keys() == expected.keys(), moment
            assert [name for name in expected if found[name] != expected[name]] == [], moment
    print(
        f"{name}: {before} kills of {undisturbed.seconds:.1f} s and {undisturbed.changes} changes; {after} came too late"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["import", "pack", "features", "stage2", "refit", "export"])
def test_a_killed_command_that_is_run_again_leaves_the_same_bytes(name: str, inputs: Inputs, tmp_path: Path) -> None:
    _check(name, inputs, tmp_path, FEW)


@pytest.mark.kills
@pytest.mark.parametrize("name", CASES)
def test_a_command_killed_at_twenty_moments_leaves_the_same_bytes(name: str, inputs: Inputs, tmp_path: Path) -> None:
    _check(name, inputs, tmp_path, MANY)
