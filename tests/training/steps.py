"""Acts before the steps of training, in this process: kills, signals, delays."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ptmrec_dist.distributed import World
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.session import Session, open_session
from ptmrec_dist.training.trainer import Trainer


def before_each_step(act: Callable[[Trainer, int], None]) -> None:
    """Call `act(trainer, step)` before each step, counted from 0 since the start of the run."""
    whole_step = Trainer.train_step

    def step(trainer: Trainer, window: list[Any]) -> None:
        act(trainer, trainer.state.total_steps)
        whole_step(trainer, window)

    Trainer.train_step = step  # type: ignore[method-assign]


def kill_before_step(step: int) -> None:
    """Kill this process before a step."""

    def kill(trainer: Trainer, number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_step(kill)


def terminate_first_rank_before_step(step: int) -> None:
    """Ask the first rank to stop before a step."""

    def terminate(trainer: Trainer, number: int) -> None:
        if number == step and trainer.world.is_first:
            os.kill(os.getpid(), signal.SIGTERM)

    before_each_step(terminate)


@contextmanager
def temporary_session(config: Any, world: World) -> Iterator[Session]:
    """A session with a run folder of this rank alone, for steps outside of a command."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        run = RunFolder(Path(folder) / "run", config, {})
        run.start()
        with redirect_stdout(io.StringIO()):
            session = stack.enter_context(open_session(config, run, world, {}))
        yield session
