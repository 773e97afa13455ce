"""The loop over epochs and steps of everything that tunes an encoder: interrupted anywhere, it resumes where it was.

What a step does, and what follows an epoch, is the task's; when losses are read, checkpoints written and signals heeded is
the same for all.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from ptmrec_dist.distributed import World, gather_rows
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.checkpoint import Checkpoints, LoopState, load_engine
from ptmrec_dist.training.meter import Meter
from ptmrec_dist.training.monitor import Monitor


class Watched(Protocol):
    """What watches over a loop."""

    world: World
    monitor: Monitor
    watch: Heartbeat
    meter: Meter


class Task(Protocol):
    """What is trained. All of it is collective: every rank calls it at the same moment."""

    def start_epoch(self, epoch: int) -> int:
        """Get ready for an epoch and say how many steps it has."""

    def windows(self, epoch: int, skip: int) -> Iterator[Any]:
        """Give what each step is made on, the first `skip` steps left out."""

    def step(self, window: Any, number: int) -> int:
        """Make step `number` since the start, counted from 0, and say how many items went through the encoder."""

    def end_epoch(self) -> None:
        """Do what follows an epoch."""

    def write(self, folder: Path) -> None:
        """Write into a checkpoint what `resume_from` and the task need to resume from it."""


def run_epochs(
    task: Task, over: Watched, loop: LoopState, checkpoints: Checkpoints, *, epochs: int, checkpoint_every: int
) -> bool:
    """Train to the end.

    Collective: every rank must call this.

    Args:
        task: What is trained.
        over: What watches over it.
        loop: Where it stands; it is kept up to date.
        checkpoints: Where it is kept.
        epochs: Most epochs.
        checkpoint_every: Steps between checkpoints; one is also written after every epoch.

    Returns:
        False where the user interrupted; a checkpoint is written then, too.

    Raises:
        UserError: A loss that is not finite.
        Fault: A checkpoint that could not be written, or items that could not be read.
    """
    monitor, world = over.monitor, over.world
    monitor.losses, monitor.sums = loop.losses, loop.sums

    def save() -> None:
        over.watch.between()
        monitor.read()  # nothing is kept that a loss beyond numbers may have spoilt
        loop.losses, loop.sums = monitor.losses, monitor.sums
        checkpoints.save(loop, task.write, world)

    with monitor.interrupt:
        while loop.epoch < epochs and not loop.stopping.should_stop:
            label = f"epoch {loop.epoch + 1}/{epochs}"
            with over.meter.epoch():
                whole = _run_epoch(task, over, loop, save, checkpoint_every, label)
                monitor.read()  # waits for what the device has still to do
            if not whole:
                if world.is_first:
                    print(f"interrupted at step {loop.total_steps}; run the same command to resume")
                return False
            loop.epoch, loop.step = loop.epoch + 1, 0
            over.watch.between()
            loop.losses, loop.sums = monitor.losses, monitor.sums
            task.end_epoch()
            save()
    return True


def _run_epoch(
    task: Task, over: Watched, loop: LoopState, save: Callable[[], None], checkpoint_every: int, label: str
) -> bool:
    """Train from the loop's step to the end of its epoch; False where the user interrupted."""
    total = task.start_epoch(loop.epoch)
    if not loop.step:
        over.monitor.sums = {}
    quiet = not over.world.is_first
    with tqdm(total=total, initial=loop.step, desc=label, unit="step", disable=quiet, leave=False) as bar:
        for window in task.windows(loop.epoch, loop.step):
            over.watch.at(loop.total_steps + 1)
            over.meter.items += task.step(window, loop.total_steps)
            loop.step, loop.total_steps, loop.losses = loop.step + 1, loop.total_steps + 1, over.monitor.losses
            bar.update()
            bar.set_postfix({name: f"{value:.4f}" for name, value in loop.losses.items()}, refresh=False)
            if over.monitor.stop:
                save()
                return False
            if loop.total_steps % checkpoint_every == 0 and loop.step < total:
                save()
    return True


def resume_from(
    engine: Engine, checkpoints: Checkpoints, world: World, begin: LoopState, *, ordered_by_ranks: bool = True
) -> tuple[Path | None, LoopState]:
    """Resume from the newest complete checkpoint, or start where there is none.

    Collective: every rank must call this.

    Args:
        engine: An engine that has made no step yet.
        checkpoints: Checkpoints of the run.
        world: This rank and its peers.
        begin: State of a loop that begins.
        ordered_by_ranks: The order of an epoch depends on the number of ranks and on how items are divided into shards: if
            either has changed, the epoch starts again.

    Returns:
        Folder of the checkpoint, whose weights and moments the engine has now, or None; and the state of the loop.

    Raises:
        UserError: Ranks see different checkpoints, or they are of another model.
    """
    found = checkpoints.latest()
    steps = gather_rows(torch.tensor([-1 if found is None else found[1].total_steps], device=world.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"out: ranks see checkpoints of different steps in {checkpoints.folder.parent} ({steps}, -1 for none); expected "
            "one folder that all machines share"
        )
    if found is None:
        return None, begin
    folder, loop = found
    load_engine(engine, folder)
    before, loop.world_size = loop.world_size, world.size
    divided, loop.layout = loop.layout != begin.layout, begin.layout
    changed = ""
    if before != world.size:
        changed = f" on {world.size} ranks instead of {before}: weights and Adam's moments carry over"
    if (before != world.size or divided) and ordered_by_ranks and loop.step:
        cause = "shards" if divided else "ranks"
        changed += f"; the epoch starts again, for its order depends on the {cause} ({loop.step} steps are repeated)"
        loop.step = 0
    if world.is_first:
        print(f"resuming at step {loop.total_steps} (epoch {loop.epoch + 1}, step {loop.step + 1}){changed}")
    return folder, loop
