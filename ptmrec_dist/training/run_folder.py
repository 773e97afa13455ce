"""Run folders: the settings of a run, its inputs and its results.

config.yaml   the settings            history.jsonl   a line per evaluation
inputs.json   fingerprints of what it is made from, written first and compared whenever the run is started again
run.json      lineage, fingerprint    metrics.json    validation and test; written last: the run is complete
recommender.safetensors   encoder.safetensors (what was tuned inside the encoder)   features/ (stage 2)
efficiency.json   time, throughput (stage 2) and memory of the epochs
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ptmrec_dist.config import plain_settings, used_settings
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import UNFINISHED, read_json_lines, read_yaml, write_atomically
from ptmrec_dist.lineage import check_inputs, is_foreign, write_inputs
from ptmrec_dist.training.checkpoint import Checkpoints
from ptmrec_dist.training.records import RunRecord, write_record

EFFICIENCY_FILE = "efficiency.json"
CHECKPOINTS, UNFINISHED_ENCODER = "checkpoints", ".encoder.new"
"""Folders of a run that has not ended."""
# Settings that change where or how fast a run trains, never what it learns.
INCIDENTAL = {
    "out",
    "device",
    "tracking",
    "workers",
    "cache_gib",
    "cuda_graphs",
    "checkpoint_every",
    "keep_checkpoints",
    "tables",
    "zero",
    "check_every",
    "timeout",
    "max_damaged",
    "strict",
    "refit",  # another run, which follows
}
# Where inputs lie: what they are is compared by `inputs.json`.
PATHS = {
    "run",
    "shards",
    "features",
    "stage1",
    "transfer_from",
    "teacher_run",
    "encoder",
    "image_encoder",
    "text_encoder",
    "from_run",
    "from_shards",
}


class RunFolder:
    """A run folder being written.

    Args:
        folder: Where.
        settings: The command's settings.
        inputs: Name of each input to its fingerprint.
        last: What is written last, the sign that the run is complete.

    Raises:
        UserError: The folder holds a run of other settings or of other inputs, or something that is no run.
    """

    def __init__(self, folder: Path, settings: Any, inputs: Mapping[str, str], last: str = "metrics.json") -> None:
        self.folder, self.inputs, self.last = folder, inputs, last
        self.settings = plain_settings(settings)
        config = folder / "config.yaml"
        if config.is_file():
            self._check_same(read_yaml(config, "out"))
            check_inputs(folder, inputs)
        elif is_foreign(folder):
            raise UserError(f"out: {folder} exists and is not a run folder; choose another --out")

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / self.last).is_file()

    def tidy(self) -> None:
        """Remove what a complete run does not need any more, and files that a killed process had not finished."""
        for name in (CHECKPOINTS, UNFINISHED_ENCODER):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self.folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    def start(self) -> None:
        """Make the folder and note inputs and settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_inputs(self.folder, self.inputs)
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write the evaluations so far, a line each.

        Args:
            history: One dict an evaluation.
        """
        write_atomically(self.folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))

    def write_efficiency(self, efficiency: dict[str, float]) -> None:
        """Write what an epoch cost; nothing where none was trained.

        Args:
            efficiency: What `Meter.summary` gave.
        """
        if efficiency:
            write_atomically(self.folder / EFFICIENCY_FILE, json.dumps(efficiency, indent=1))

    def finish(self, record: RunRecord, metrics: dict[str, dict[str, float]], mlflow_run: str | None = None) -> None:
        """Write lineage and metrics; the metrics last, since they mark the run as complete.

        Args:
            record: Lineage, its fingerprint still empty.
            metrics: Part to metric to value.
            mlflow_run: MLflow run id.
        """
        write_record(self.folder, replace(record, mlflow_run=mlflow_run))
        write_atomically(self.folder / "metrics.json", json.dumps(metrics, indent=1))

    def _check_same(self, before: dict[str, Any]) -> None:
        old = used_settings(before)
        found = changed_settings(old, self.settings)
        changed = {key: what for key, what in found.items() if key.split(".")[0] not in INCIDENTAL | PATHS}
        if list(changed) == ["epochs"]:
            schedule = flatten(old).get("optim.schedule", "constant")
            self._check_epochs(old["epochs"], self.settings["epochs"], schedule)
        elif _is_of_another_command(old, self.settings):
            raise UserError(f"out: {self.folder} holds a run of another command; choose another --out")
        elif changed:
            what = ", ".join(changed.values())
            raise UserError(f"out: {self.folder} holds a run of other settings ({what}); choose another --out")

    def _check_epochs(self, before: int, now: int, schedule: str) -> None:
        """More or fewer epochs are the same run as long as no learning rate depends on their number."""
        if self.is_complete:
            raise UserError(
                f"epochs: {self.folder} is complete with --epochs {before} and keeps no checkpoint to resume from; choose "
                f"another --out to train {now}"
            )
        if schedule != "constant":
            raise UserError(
                f"epochs: {self.folder} was started with {before}, got {now}, but the learning rates of --optim.schedule "
                f"{schedule} depend on it; keep --epochs {before}, or choose another --out"
            )
        fewest = self._fewest_epochs()
        if now < fewest:
            raise UserError(f"epochs: got {now}, but {self.folder} is past that; expected {fewest} or more")

    def _fewest_epochs(self) -> int:
        """Epochs after which the run can end as if it had been started with that number: those begun and those evaluated."""
        history = self.folder / "history.jsonl"
        lines = read_json_lines(history, "out") if history.is_file() else []
        evaluated: list[int] = [line["epoch"] for line in lines]
        found = Checkpoints(self.folder / CHECKPOINTS, keep=1).latest()
        if found is None:
            return max([0, *evaluated])
        state = found[1]
        is_evaluated = not state.step and any(line["epoch"] == state.epoch for line in state.history)
        return max([state.epoch + (not is_evaluated), *evaluated])


def _is_of_another_command(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether each has settings that the other does not know; those of another version of one command may lack some.

    Groups are not looked at: those that a choice does not use, such as another tuning method's, are left out.
    """
    old, new = (
        {key for key, value in settings.items() if not isinstance(value, dict)} - INCIDENTAL - PATHS
        for settings in (before, now)
    )
    return bool(old - new and new - old)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys, as on the command line.

    Args:
        nested: Nested dict.
        prefix: Put in front of every key.

    Returns:
        Dotted key to value.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Compare nested settings.

    Args:
        before: Nested dict.
        now: Nested dict.

    Returns:
        Dotted key of each setting that differs to the key with both values, in order.
    """
    old, new = flatten(before), flatten(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {key: f"{key} {old.get(key)} -> {new.get(key)}" for key in keys}
