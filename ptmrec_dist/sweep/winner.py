"""The winner of a sweep: retrained over seeds, evaluated on the test split, registered.

Shape suffixes: S seeds.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ptmrec_dist.config import RegisterConfig, SweepConfig, merged
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.evaluation.tables import mean_of_seeds
from ptmrec_dist.files import read_json, write_atomically
from ptmrec_dist.sweep.stages import STAGES, command_of
from ptmrec_dist.sweep.trials import Trial
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.run_folder import flatten


class Winner:
    """Runs with the best settings, one per seed; where the settings ask for a refit, what counts is the refit.

    Args:
        config: Settings of the sweep.
        settings: The best plain settings.
        out: Folder of the sweep.
        part: Deciding part of the data.
    """

    def __init__(self, config: SweepConfig, settings: dict[str, Any], out: Path, part: str) -> None:
        self.config, self.settings, self.out, self.part = config, settings, out, part
        self.runs = {seed: out / "winner" / f"seed-{seed}" for seed in config.winner_seeds}
        stage = STAGES[command_of(config)]
        self.results = {seed: stage.result(settings, run) for seed, run in self.runs.items()}

    def jobs(self, common: dict[str, Any]) -> list[dict[str, Any]]:
        """List the jobs that are left.

        Args:
            common: Settings that all runs on the cluster have in common.

        Returns:
            A job for each seed whose run is not complete.
        """
        return [
            common
            | {
                "settings": merged(self.settings, {"seed": seed, "out": str(run), "tracking": common["tracking"]}),
                "with_test": True,
                "result": str(self.results[seed]),
                "log": str(self.out / "logs" / f"winner-seed-{seed}"),
            }
            for seed, run in self.runs.items()
            if not (self.results[seed] / "metrics.json").is_file()
        ]

    def report(self, tracker: Tracker) -> None:
        """Write and log means and standard deviations over seeds, and register the run that is best on validation.

        Args:
            tracker: The sweep's MLflow run.
        """
        found_S = {seed: read_json(run / "metrics.json", "out") for seed, run in self.results.items()}
        flat_S = [flatten(found) for found in found_S.values()]
        values = {name: np.array([flat[name] for flat in flat_S]) for name in flat_S[0]}
        means = {name: float(values_S.mean()) for name, values_S in values.items()}
        spread = {name: float(values_S.std(ddof=1)) if len(values_S) > 1 else 0.0 for name, values_S in values.items()}
        best = max(found_S, key=lambda seed: found_S[seed][self.part][SELECT])
        summary = self.out / "winner.json"
        content = {"mean": means, "sd": spread, "seeds": list(self.runs), "best_seed": best}
        refits = self.results != self.runs
        for part in found_S[best]:
            name = f"{part}.{SELECT}"
            print(f"winner{', refit' * refits}, seeds {list(self.runs)}: {name} {mean_of_seeds(values[name])}")
        before = read_json(summary, "out") if summary.is_file() else {}
        wanted = {"registered": [self.config.name, best]} if self.config.name else {}
        if self.config.name and before.get("registered") != wanted["registered"]:
            from ptmrec_dist.registry.registering import register

            register(RegisterConfig(run=self.results[best], name=self.config.name, alias=self.config.alias))
        write_atomically(summary, json.dumps(content | wanted, indent=1))
        tracker.metrics(
            {f"winner.mean.{name}": value for name, value in means.items()}
            | {f"winner.sd.{name}": value for name, value in spread.items()},
            len(flat_S),
        )
        tracker.artifacts([summary])


def table_of(trials: list[Trial]) -> str:
    """Format trials as CSV, the best first.

    Args:
        trials: Trials.

    Returns:
        The table.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.point))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["trial", "state", "value", "epoch", *keys, "reason"])
    for trial in sorted(trials, key=lambda trial: -1.0 if trial.value is None else trial.value, reverse=True):
        values = [trial.point.get(key) for key in keys]
        writer.writerow([trial.number, trial.state, trial.value, trial.epoch, *values, trial.reason])
    return stream.getvalue()
