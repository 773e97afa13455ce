"""Records of a sweep's trials: readable files in its folder, from which a killed sweep is resumed.

trials/0007.json   hyper-parameters of the trial, and once it has ended its state and result
trials/0007/       its run folder, as of `ptmrec stage1` or `ptmrec stage2` but without anything of the test split
logs/0007-0.log    output of its rank 0
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ptmrec_dist.config import Keep
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.files import read_json, read_json_lines, typed, write_atomically
from ptmrec_dist.sweep.space import Point
from ptmrec_dist.training.early_stopping import EarlyStopping

State = Literal["open", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial."""

    number: int
    """Number from 0, in the order of suggestion."""
    point: Point
    """Its hyper-parameters."""
    state: State = "open"
    """open: not ended; complete: trained to its end; pruned: stopped by ASHA; failed: ended by an error."""
    value: float | None = None
    """The selecting metric on the deciding part, at the epoch that is kept; None before the first evaluation."""
    epoch: int | None = None
    """Epoch that is kept."""
    reason: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.number:04d}"


class TrialBook:
    """Trials of one sweep.

    Args:
        out: Folder of the sweep.
        part: Deciding part of the data.
        keep: Which epoch of a trial is kept.
    """

    def __init__(self, out: Path, part: str, keep: Keep) -> None:
        self.folder = out / "trials"
        self.metric = f"{part}.{SELECT}"
        self.keep: Keep = keep

    def read(self) -> list[Trial]:
        """Read all trials; those whose run ended without being recorded are recorded now.

        Returns:
            Trials by number.

        Raises:
            UserError: A record is damaged.
        """
        found = [_read(path) for path in self._records()]
        return [self.note(trial) if trial.state == "open" and self._is_complete(trial) else trial for trial in found]

    def add(self, point: Point) -> Trial:
        """Record a new trial.

        Args:
            point: Its hyper-parameters.

        Returns:
            The trial, numbered after all others.
        """
        last = max((int(path.stem) for path in self._records()), default=-1)
        trial = Trial(last + 1, point)
        self._write(trial)
        return trial

    def note(self, trial: Trial, reason: str = "") -> Trial:
        """Record how a trial has ended, from its run folder.

        Args:
            trial: The trial.
            reason: Why it failed, if it did.

        Returns:
            The updated trial.
        """
        kept = self.kept(trial)
        _, epoch, value = kept[-1] if kept else (None, None, None)
        state: State = "failed" if reason else "complete" if self._is_complete(trial) else "pruned"
        ended = Trial(trial.number, trial.point, state, value, epoch, reason)
        self._write(ended)
        return ended

    def run(self, trial: Trial) -> Path:
        """Get the run folder of a trial.

        Args:
            trial: The trial.

        Returns:
            The folder.
        """
        return self.folder / trial.name

    def kept(self, trial: Trial) -> list[tuple[int, int, float]]:
        """Read the evaluations of a trial.

        Args:
            trial: The trial.

        Returns:
            For each evaluation its epoch, the epoch kept at that time, and the value of the kept one.
        """
        path = self.run(trial) / "history.jsonl"
        lines = read_json_lines(path, "out") if path.is_file() else []
        stopping, found = EarlyStopping(patience=len(lines) + 1, keep=self.keep), []
        for line in lines:
            stopping.update(line[self.metric], line["epoch"])
            assert stopping.kept is not None
            found.append((line["epoch"], stopping.kept_epoch, stopping.kept))
        return found

    def _records(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9][0-9]*.json"))

    def _is_complete(self, trial: Trial) -> bool:
        return (self.run(trial) / "metrics.json").is_file()

    def _write(self, trial: Trial) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{trial.name}.json", json.dumps(asdict(trial), indent=1))


def _read(path: Path) -> Trial:
    values = read_json(path, "out")
    try:
        return typed(Trial, values)
    except ValueError as error:
        raise UserError(
            f"out: {path} is no record of a trial ({error}); bring it back or choose another --out"
        ) from error
