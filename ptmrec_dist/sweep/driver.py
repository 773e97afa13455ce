"""`ptmrec sweep`: search settings of stage 1 or stage 2 on a Ray cluster, then train the winner over seeds.

ptmrec sweep --config ray_configs/search-stage1.yaml
ptmrec sweep --config ray_configs/search-prompt.yaml
ray job submit --working-dir . -- python launchers/sweep.py --config ray_configs/search-prompt.yaml
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ptmrec_dist.config import SweepConfig, plain_settings
from ptmrec_dist.distributed.cluster import connected, remove_group, resources_of_rank, room_for
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.files import read_yaml, write_atomically
from ptmrec_dist.lineage import check_inputs, is_foreign, write_inputs
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.mlflow_store import tracking_uri
from ptmrec_dist.progress import Progress
from ptmrec_dist.sweep.space import Space, check_space, read_by, read_space, settings_of
from ptmrec_dist.sweep.stages import STAGES, Common, command_of
from ptmrec_dist.sweep.trials import Trial, TrialBook
from ptmrec_dist.sweep.worker import GROUP_FILE, train_on_ranks
from ptmrec_dist.tracking import Tracker, has_tracked_run
from ptmrec_dist.training.run_folder import CHECKPOINTS, PATHS, changed_settings, flatten

# Settings that may differ when a sweep is resumed: where, how fast and how long it runs, and what is done with the winner.
_INCIDENTAL = {
    *("out", "resume", "ray", "concurrent", "max_failures", "tracking", "device", "trials"),
    *("winner_seeds", "name", "alias"),
    *PATHS,
}
_WAITING_BYTES = 300_000_000


@exclusive_out
def run_sweep(config: SweepConfig) -> None:
    """Search, select the best trial, train it over seeds, register it (`ptmrec sweep`).

    Args:
        config: Settings.

    Raises:
        UserError: A searched key or value that a trial would refuse, a trial larger than the cluster, a folder with another
            sweep or none to resume: all before any trial starts. No trial with an evaluation.
        Fault: Trials or runs of the winner that did not end.
        KeyboardInterrupt: The user stopped it; the same command resumes it.
    """
    space = read_space(config)
    common = STAGES[command_of(config)].check(config, check_space(config, space))
    _check_folder(config, common.inputs)
    with connected(config.ray):
        for note in (config.out / "logs").glob(f"*{GROUP_FILE}"):  # left by a killed driver
            remove_group(note)
        concurrent = room_for(config.ranks, config.ray)
        sweep = Sweep(config, space, common, min(concurrent, config.concurrent or concurrent))
        write_inputs(_made(config.out), common.inputs)
        write_atomically(config.out / "sweep.yaml", yaml.safe_dump(plain_settings(config), sort_keys=False))
        with Tracker.start(
            config.tracking,
            name=config.out.name,
            params=flatten(plain_settings(config) | {"space": json.dumps(config.space)}),
            tags={"stage": "sweep", **common.tags},
            parent=common.parent,
            folder=config.out,
        ) as tracker:
            sweep.search(tracker)
            sweep.conclude(tracker)
    shutil.rmtree(sweep.scratch, ignore_errors=True)


class Sweep:
    """A checked sweep on a connected cluster.

    Args:
        config: Settings.
        space: Search space.
        common: What all trials have in common.
        concurrent: Trials at a time.
    """

    def __init__(self, config: SweepConfig, space: Space, common: Common, concurrent: int) -> None:
        self.config, self.space, self.common, self.concurrent = config, space, common, concurrent
        self.out = config.out.resolve()
        self.book = TrialBook(self.out, common.part, common.keep)
        self.scratch = self.out / "ray"
        shutil.rmtree(self.scratch, ignore_errors=True)  # Ray's own files are never read back

    def search(self, tracker: Tracker) -> None:
        """Run the trials that have not ended yet.

        Args:
            tracker: The sweep's MLflow run.

        Raises:
            KeyboardInterrupt: The user stopped it; some trials have not ended.
        """
        from ptmrec_dist.sweep.search import SweepSearch, make_scheduler

        with Progress(desc="sweep", unit="trial", leave=False) as bar:

            def ended(trial: Trial) -> None:
                value = "" if trial.value is None else f", {self.book.metric} {trial.value:.4f} at epoch {trial.epoch}"
                why = f" ({trial.reason})" if trial.reason else ""
                bar.update()
                bar.line(f"trial {trial.number}: {trial.state}{value}{why}")
                remove_group(self.out / "logs" / f"{trial.name}{GROUP_FILE}")
                self._close(trial)

            search = SweepSearch(self.config, self.space, self.book, self._job_of(tracker.run_id), ended)
            bar.total = search.left
            bar.refresh()
            if search.left:
                scheduler = make_scheduler(self.config, self.common.epochs, self.book)
                self._run({}, "search", num_samples=-1, search_alg=search, scheduler=scheduler)
        trials = self.book.read()
        if any(trial.state == "open" for trial in trials):
            raise KeyboardInterrupt
        count = Counter(trial.state for trial in trials)
        print(f"{len(trials)} trials: " + ", ".join(f"{number} {state}" for state, number in sorted(count.items())))

    def conclude(self, tracker: Tracker) -> None:
        """Select the winner, plot the sweep, train the winner over seeds and register it.

        Args:
            tracker: The sweep's MLflow run.

        Raises:
            UserError: No trial reached an evaluation.
        """
        from ptmrec_dist.sweep.figures import plot
        from ptmrec_dist.sweep.winner import Winner, table_of

        read = partial(read_by, self.config)
        trials = self.book.read()
        for trial in trials:
            shutil.rmtree(self.book.run(trial) / CHECKPOINTS, ignore_errors=True)
        able = [trial for trial in trials if trial.value is not None and trial.state != "failed"]
        if not able:
            raise UserError(f"sweep: no trial reached an evaluation; see {self.out / 'logs'}")
        best = max(able, key=lambda trial: trial.value or 0.0)  # the first of equal ones
        settings = settings_of(self.config, best.point)
        write_atomically(self.out / "best.yaml", yaml.safe_dump(settings, sort_keys=False))
        write_atomically(
            self.out / "trials.csv", table_of([replace(trial, point=read(trial.point)) for trial in trials])
        )
        print(f"best: trial {best.number}, {self.book.metric} {best.value:.4f}: {read(best.point)}")
        figures = plot(self.space, able, read, self.book.metric, self.out)
        tracker.metrics({f"best.{self.book.metric}": best.value or 0.0, "best.trial": best.number}, len(trials))
        tracker.artifacts([self.out / "best.yaml", self.out / "trials.csv", self.out / "sweep.yaml", *figures])
        if self.config.winner_seeds:
            winner = Winner(self.config, settings, self.out, self.common.part)
            self._run_all(winner.jobs(self._job(tracker.run_id)))
            winner.report(tracker)

    def _job_of(self, parent: str | None) -> Callable[[Trial], dict[str, Any]]:
        from ptmrec_dist.sweep.search import rungs_of

        job = self._job(parent) | {"rungs": rungs_of(self.config, self.common.epochs)}

        def of(trial: Trial) -> dict[str, Any]:
            run = self.book.run(trial)
            run.with_name(f"{run.name}.refused").unlink(missing_ok=True)
            settings = settings_of(self.config, trial.point, out=str(run), tracking=job["tracking"])
            return job | {"settings": settings, "with_test": False, "log": str(self.out / "logs" / trial.name)}

        return of

    def _job(self, parent: str | None) -> dict[str, Any]:
        """Settings that all runs on the cluster have in common."""
        ours = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "PTMREC_"))}
        return {
            "command": command_of(self.config),
            "part": self.common.part,
            "keep": self.common.keep,
            "rungs": [],
            "ranks": self.config.ranks,
            "resources": resources_of_rank(self.config.ray),
            "placement": self.config.ray.placement,
            "scratch": str(self.scratch),
            "folder": os.getcwd(),
            "environment": ours | {"MLFLOW_TRACKING_URI": tracking_uri()},
            "tracking": {**asdict(self.config.tracking), "parent": parent},
        }

    def _run_all(self, jobs: list[dict[str, Any]]) -> None:
        from ray import tune

        if not jobs:
            return
        result = self._run({"job": tune.grid_search(jobs)}, "winner")
        for run in [Path(job["result"]) for job in jobs]:
            if not (run / "metrics.json").is_file():
                errors = "; ".join(str(error).splitlines()[-1] for error in result.errors)
                raise Fault(f"{run} did not end ({errors or 'see logs'}); run the same command to resume")

    def _run(self, space: dict[str, Any], name: str, **how: Any) -> Any:
        from ray import tune

        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # trials are reported here, one line each
        # A trial that ends before the first rung reports nothing.
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        return tune.Tuner(
            # The trial's own process only waits for its ranks, which hold the resources. It is pinned to the head node, and
            # with it the controller of these: lost with another node, it would leave resources reserved.
            tune.with_resources(train_on_ranks, {"memory": _WAITING_BYTES, "node:__internal_head__": 0.001}),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=self.concurrent,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                **how,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self.scratch),
                failure_config=tune.FailureConfig(max_failures=self.config.max_failures),
                verbose=0,
            ),
        ).fit()

    def _close(self, trial: Trial) -> None:
        """End the MLflow run of a trial whose ranks were terminated before they could."""
        folder = self.book.run(trial)
        if trial.state == "complete" or not has_tracked_run(folder):
            return
        with Tracker.start(
            self.config.tracking, name=trial.name, params={}, tags={"trial": trial.state}, folder=folder
        ) as tracker:
            tracker.interrupted()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_folder(config: SweepConfig, inputs: dict[str, str]) -> None:
    """Refuse a folder of another sweep or of something else, and inputs that changed since the sweep was started."""
    before = config.out / "sweep.yaml"
    if before.is_file():
        old, new = (_deciding(settings) for settings in (read_yaml(before, "out"), plain_settings(config)))
        if changed := changed_settings(old, new):
            what = ", ".join(changed.values())
            raise UserError(f"out: {config.out} holds a sweep with other settings ({what}); choose another --out")
        check_inputs(config.out, inputs)
    elif config.resume:
        raise UserError(f"resume: {config.out} holds no sweep to resume; leave --resume out to start one")
    elif is_foreign(config.out):
        raise UserError(f"out: {config.out} exists and holds no sweep; choose another --out")


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that must be the same when a sweep is resumed."""
    train = {name: value for name, value in (settings.get("train") or {}).items() if name not in PATHS}
    return {name: value for name, value in settings.items() if name not in _INCIDENTAL} | {"train": train}
