"""Checkpoints of a run: renamed when complete; the last few are kept, damaged ones are skipped.

A checkpoint is a folder: weights and moments, what else the objective needs, and `loop.json` with the state of the trainer
and the sha256 of every file.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.tensor_file import write_pieces
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import parse_json, sha256, typed
from ptmrec_dist.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where training stands: everything about it that is not a weight. The trainer alone changes it."""

    epoch: int = 0
    """Epoch to resume with."""
    step: int = 0
    """Steps of that epoch that are done."""
    total_steps: int = 0
    """Steps done since the start."""
    world_size: int = 1
    """Ranks that wrote it."""
    layout: str = ""
    """What the order within an epoch depended on, besides the seed."""
    generator: str = ""
    """State of the generator of the epoch's random numbers, as hexadecimal digits."""
    losses: dict[str, float] = field(default_factory=dict)
    """Terms of the objective at the last step that was read."""
    sums: dict[str, float] = field(default_factory=dict)
    """Terms of the objective, added up over the steps of the epoch."""
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

    def save(self, state: TrainState, write: Callable[[Path], None], world: World) -> None:
        """Write a checkpoint and drop the oldest beyond `keep`.

        Collective: every rank must call this; `write` runs on all of them.

        Args:
            state: State of the trainer.
            write: Writes the weights into the folder that it is given; a rank that cannot write takes part in all its
                collectives before it raises.
            world: This rank and its peers.

        Raises:
            Fault: It could not be written; the checkpoints before it are still there.
        """
        final = self.folder / f"step-{state.total_steps:09d}"
        fresh = self.folder / f".{final.name}.new"
        before = self._all()
        kept = f"{before[-1].name} is still there" if before else "there is none before it"
        with writing(world, f"checkpoint {final}", kept):
            if world.is_first:
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir(parents=True)
        with writing(world, f"checkpoint {final}", kept, fresh):
            write(fresh)
            if world.is_first:
                marks = {str(path.relative_to(fresh)): sha256(path) for path in _files(fresh)}
                (fresh / "loop.json").write_text(json.dumps({"files": marks, "state": asdict(state)}, indent=1))
                _flush(fresh)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(fresh, final)
                for old in self._all()[: -self.keep]:
                    shutil.rmtree(old)

    def latest(self) -> tuple[Path, TrainState] | None:
        """Find the newest checkpoint that is whole.

        Returns:
            Its folder and the state of the trainer, or None where there is none.
        """
        for folder in reversed(self._all()):
            state = _read_whole(folder)
            if state is not None:
                return folder, state
            log.warning("checkpoint %s is damaged; going back to the one before it", folder)
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []


def save_engine(engine: Engine, trained: Mapping[str, Tensor], folder: Path) -> None:
    """Write weights and moments.

    The first rank writes one tensor after the other; the others help to put each together and keep none.

    Collective: every rank must call this.

    Args:
        engine: An engine.
        trained: Name to parameter or buffer: everything that training changes.
        folder: Folder of the checkpoint.

    Raises:
        OSError: The first rank could not write; every rank has taken part in all collectives by then.
    """
    failure: OSError | None = None
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    for name, pieces in engine.state(trained).items():
        try:
            write_pieces(folder / f"{name}.safetensors" if is_first else None, pieces)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def load_engine(engine: Engine, trained: Mapping[str, Tensor], folder: Path) -> None:
    """Read what `save_engine` wrote, whatever number of ranks and ZeRO stage wrote it.

    Collective: every rank must call this.

    Args:
        engine: An engine that has made no step yet.
        trained: As for `save_engine`.
        folder: Folder of the checkpoint.

    Raises:
        UserError: The checkpoint is of another model.
    """
    with (
        safe_open(folder / "weights.safetensors", "pt") as weights,
        safe_open(folder / "optimizer.safetensors", "pt") as moments,
    ):
        saved = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        if saved != {piece.name: piece.shape for piece in engine.state(trained)["weights"]}:
            raise UserError(f"out: the checkpoint {folder} is of another model; choose another --out")
        engine.load_state(trained, weights, moments)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    """Have everything on the disk before the folder takes its name: a power cut must not leave empty files in it."""
    for path in [*_files(folder), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_whole(folder: Path) -> TrainState | None:
    try:
        content = parse_json((folder / "loop.json").read_text(encoding="utf-8"))
        marks = {str(path.relative_to(folder)): sha256(path) for path in _files(folder) if path.name != "loop.json"}
        return typed(TrainState, content["state"]) if content["files"] == marks else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
