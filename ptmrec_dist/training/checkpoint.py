"""Checkpoints of a run: written aside, renamed when whole, the last few kept, a damaged one passed over.

A checkpoint is a folder: whatever the trainer writes, and `loop.json` with the state of the loop and the size of every
file. Randomness needs no state of its own: every draw is a function of the seed, the epoch and the step.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ptmrec_dist.distributed import World, barrier
from ptmrec_dist.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """Where the loop stands; everything about it that is not a weight."""

    epoch: int = 0
    """Epoch to go on with."""
    step: int = 0
    """Steps of that epoch that are done."""
    total_steps: int = 0
    """Steps done since the start."""
    world_size: int = 1
    """Ranks that wrote it."""
    losses: dict[str, float] = field(default_factory=dict)
    """Terms of the objective at the last step."""
    stopping: EarlyStopping = field(default_factory=lambda: EarlyStopping(patience=1))
    """Early stopping."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations so far."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Folder that holds them.
        keep: How many to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, state: LoopState, write: Callable[[Path], None], world: World) -> None:
        """Write a checkpoint and drop the oldest beyond `keep`.

        Collective: every rank must call this; `write` runs on all of them.

        Args:
            state: State of the loop.
            write: Writes the weights into the folder that it is given.
            world: This rank's place.
        """
        final = self.folder / f"step-{state.total_steps:09d}"
        fresh = self.folder / f".{final.name}.new"
        if world.is_first:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        barrier()
        write(fresh)
        barrier()
        if world.is_first:
            sizes = {str(path.relative_to(fresh)): path.stat().st_size for path in _files(fresh)}
            (fresh / "loop.json").write_text(json.dumps({"files": sizes, "state": asdict(state)}, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(fresh, final)
            for old in self._all()[: -self.keep]:
                shutil.rmtree(old)
        barrier()

    def latest(self) -> tuple[Path, LoopState] | None:
        """Find the newest checkpoint that is whole.

        Returns:
            Its folder and the state of the loop, or None where there is none.
        """
        for folder in reversed(self._all()):
            state = _read_whole(folder)
            if state is not None:
                return folder, state
            log.warning("checkpoint %s is damaged; going back to the one before it", folder)
        return None

    def clear(self) -> None:
        """Remove all checkpoints: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read_whole(folder: Path) -> LoopState | None:
    try:
        content = json.loads((folder / "loop.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in content["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    state = content["state"]
    return LoopState(**(state | {"stopping": EarlyStopping(**state["stopping"])}))
