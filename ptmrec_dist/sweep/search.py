"""Search algorithm and scheduler for Ray Tune: Optuna and ASHA, backed by the sweep's own records of trials.

A resumed sweep starts with a new Optuna study and a new ASHA into which the results of ended trials are replayed; open trials
are started first, in their own run folders. No state of Ray is read back.
"""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ptmrec_dist.config import SweepConfig
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.sweep.space import Space, grid_points
from ptmrec_dist.sweep.trials import Trial, TrialBook


class SweepSearch(Searcher):
    """Suggests trials: first the open ones, then Optuna's.

    Args:
        config: Settings of the sweep.
        space: Search space.
        book: Records of trials; new ones are added.
        job_of: Makes the job of a trial.
        ended: Called with each trial that has ended.
    """

    def __init__(
        self,
        config: SweepConfig,
        space: Space,
        book: TrialBook,
        job_of: Callable[[Trial], dict[str, Any]],
        ended: Callable[[Trial], None],
    ) -> None:
        super().__init__(metric=SELECT, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._book, self._job_of, self._ended = book, job_of, ended
        before = book.read()
        self._open = [trial for trial in before if trial.state in ("open", "failed")]
        points = grid_points(space) if config.search == "grid" else []
        wanted = len(points) if points else config.trials or 32
        # A resumed sweep may ask for fewer trials than there are; what was begun is ended all the same.
        self.left = max(wanted - (len(before) - len(self._open)), len(self._open))
        tried = [trial.point for trial in before]
        self._optuna = OptunaSearch(
            space,
            metric=SELECT,
            mode="max",
            points_to_evaluate=[trial.point for trial in self._open]
            + [point for point in points if point not in tried],
            sampler=_sampler(config, len(before)),
        )
        for trial in before:
            if trial not in self._open and trial.value is not None:
                self._optuna.add_evaluated_point(trial.point, trial.value)
        self._running: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Suggest the next trial.

        Args:
            trial_id: Ray's name for it.

        Returns:
            Its job, or `Searcher.FINISHED`.
        """
        if not self.left:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        self.left -= 1
        point = self._optuna.suggest(trial_id)
        trial = self._open.pop(0) if self._open else self._book.add(point)
        self._running[trial_id] = trial
        return {"job": self._job_of(trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Forward an evaluation to Optuna.

        Args:
            trial_id: Ray's name for the trial.
            result: The reported result.
        """
        self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record that a trial has ended.

        Args:
            trial_id: Ray's name for the trial.
            result: Its last report.
            error: Whether it failed more often than `max_failures`.
        """
        trial = self._running.pop(trial_id)
        reason = refusal(self._book.run(trial)) or ("its ranks died or its nodes were lost" if error else "")
        trial = self._book.note(trial, reason)
        final = None if trial.value is None or reason else {SELECT: trial.value}
        self._optuna.on_trial_complete(trial_id, final, error=bool(reason))
        self._ended(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Ray stores a copy of its arguments that is never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: all state is in the trial records.

        Args:
            checkpoint_path: File that Ray expects.
        """
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing.

        Args:
            checkpoint_path: Not read.
        """


def rungs_of(config: SweepConfig, epochs: int) -> list[int]:
    """List the rungs of ASHA.

    Args:
        config: Settings of the sweep.
        epochs: Maximum number of epochs of a trial.

    Returns:
        Epochs after which trials are compared, ascending: none where all train to their end.
    """
    rungs, rung = [], config.asha.grace
    assert rung is not None  # SweepConfig chose one
    while config.asha.enabled and rung < epochs:
        rungs.append(rung)
        rung *= config.asha.reduction
    return rungs


def make_scheduler(config: SweepConfig, epochs: int, book: TrialBook) -> TrialScheduler:
    """Make the scheduler that stops trials early, with the results of ended trials replayed.

    Args:
        config: Settings of the sweep.
        epochs: Maximum number of epochs of a trial.
        book: Records of trials.

    Returns:
        The scheduler.
    """
    rungs = rungs_of(config, epochs)
    if not rungs:
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr="epoch",
        metric=SELECT,
        mode="max",
        max_t=epochs - 1,  # a trial that has trained to the end is not stopped
        grace_period=rungs[0],
        reduction_factor=config.asha.reduction,
        stop_last_trials=False,
    )
    for trial in book.read():
        if trial.state in ("complete", "pruned"):
            replayed = SimpleNamespace(trial_id=f"trial {trial.name}")
            asha.on_trial_add(None, replayed)
            for epoch, _, value in book.kept(trial):
                asha.on_trial_result(None, replayed, {"epoch": epoch, SELECT: value})
    return asha


def refusal(run: Path) -> str:
    """Read why a run was refused or stopped: a user's mistake, or a loss that is not finite.

    Args:
        run: Run folder.

    Returns:
        The message; empty if there is none.
    """
    path = run.with_name(f"{run.name}.refused")
    return path.read_text() if path.is_file() else ""


def _sampler(config: SweepConfig, before: int) -> optuna.samplers.BaseSampler:
    """Make a sampler whose samples differ from those before an interruption."""
    seed = random.Random(f"{config.seed} {before}").randrange(2**31)
    return optuna.samplers.RandomSampler(seed) if config.search == "random" else optuna.samplers.TPESampler(seed=seed)
