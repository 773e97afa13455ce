"""Run folders: what a run was asked, what it came from, what it reached.

config.yaml   the settings            history.jsonl   a line an evaluation
run.json      lineage, fingerprint    metrics.json    validation and test, the sign that the run is complete
recommender.safetensors   encoder.safetensors (what was tuned inside the encoder)   features/ (stage 2)
efficiency.json   time, throughput (stage 2) and memory of the epochs
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from ptmrec_dist.errors import UserError

RECOMMENDER_FILE = "recommender.safetensors"
ENCODER_FILE = "encoder.safetensors"
EFFICIENCY_FILE = "efficiency.json"
# Settings that change where or how fast a run goes, never what it learns.
INCIDENTAL = {
    "out",
    "device",
    "tracking",
    "workers",
    "checkpoint_every",
    "keep_checkpoints",
    "zero",
    "check_every",
    "timeout",
    "max_damaged",
    "strict",
}


@dataclass(frozen=True)
class RunRecord:
    """Lineage of a finished run (`run.json`)."""

    stage: int
    """1; 2 where an encoder was trained along; 0 before any training."""
    recommender: str
    """Name of the recommender."""
    modalities: list[str]
    """Modalities that it reads."""
    hyperparameters: dict[str, Any]
    """Hyper-parameters given to it; the others are its defaults."""
    data: dict[str, str]
    """`path` and `fingerprint` of the packed data set."""
    features: dict[str, str] | None
    """`path` and `fingerprint` of the features it ends with."""
    graph_features: dict[str, str] | None
    """`path` and `fingerprint` of the features that item graphs are made of: the frozen ones, also in stage 2."""
    encoder: dict[str, Any] | None
    """`model`, `pretrained` and `fingerprint` of the backbone."""
    stage1: dict[str, str] | None = None
    """`path` and `fingerprint` of the stage 1 run that it started from, where there was one."""
    mlflow_run: str | None = None
    """MLflow run id."""
    train_features: bool = False
    """Whether the feature tables were trained."""
    mask_validation_at_test: bool = False
    """Whether validation positives were left out of the ranking at test time."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Parameters of stage 1: `ids`, `rest`, `feature_tables`, and `trainable` of them all."""
    kept_epoch: int | None = None
    """Epoch that the weights are of."""
    fingerprint: str = ""
    """sha256 over weights and lineage."""


class RunFolder:
    """A run folder being written.

    Args:
        folder: Where.
        settings: The command's settings.
        last: What is written last, the sign that the run is complete.

    Raises:
        UserError: The folder holds a run of other settings, or something that is no run.
    """

    def __init__(self, folder: Path, settings: Any, last: str = "metrics.json") -> None:
        self.folder, self.last = folder, last
        self.settings = plain_settings(settings)
        config = folder / "config.yaml"
        if config.is_file():
            self._check_same(yaml.safe_load(config.read_text()))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"out: {folder} exists and is not a run folder; choose another --out")

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / self.last).is_file()

    def start(self) -> None:
        """Make the folder and note the settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))

    @property
    def mlflow_run(self) -> str | None:
        """MLflow run that an interrupted run goes on with; noted as soon as there is one."""
        path = self.folder / "tracking.json"
        return json.loads(path.read_text())["mlflow_run"] if path.is_file() else None

    @mlflow_run.setter
    def mlflow_run(self, run_id: str | None) -> None:
        write_atomically(self.folder / "tracking.json", json.dumps({"mlflow_run": run_id}))

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

    def finish(self, record: RunRecord, metrics: dict[str, dict[str, float]]) -> None:
        """Write lineage and metrics; the metrics last, for they mark the run as complete.

        Args:
            record: Lineage, its fingerprint still empty.
            metrics: Part to metric to value.
        """
        digest = hashlib.sha256(json.dumps(asdict(record), sort_keys=True).encode())
        for name in (RECOMMENDER_FILE, ENCODER_FILE):
            if (self.folder / name).is_file():
                digest.update((self.folder / name).read_bytes())
        written = asdict(record) | {"fingerprint": digest.hexdigest()}
        write_atomically(self.folder / "run.json", json.dumps(written, indent=1))
        write_atomically(self.folder / "metrics.json", json.dumps(metrics, indent=1))

    def _check_same(self, before: dict[str, Any]) -> None:
        old, new = flatten(before), flatten(self.settings)
        keys = [key for key in old.keys() | new.keys() if key.split(".")[0] not in INCIDENTAL]
        changed = sorted(key for key in keys if old.get(key) != new.get(key))
        if changed:
            what = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in changed)
            raise UserError(f"out: {self.folder} holds a run of other settings ({what}); choose another --out")


def plain_settings(settings: Any) -> dict[str, Any]:
    """Turn a settings dataclass into plain values, as YAML and MLflow take them.

    Args:
        settings: A dataclass of `ptmrec_dist.config`.

    Returns:
        Nested dict of numbers, strings, lists and None.
    """
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return plain


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


def read_record(folder: Path) -> RunRecord:
    """Read the lineage of a finished run.

    Args:
        folder: Run folder.

    Returns:
        Its record.

    Raises:
        UserError: No finished run there.
    """
    if not (folder / "metrics.json").is_file() or not (folder / "run.json").is_file():
        state = (
            "is not finished; start it again to go on" if (folder / "config.yaml").is_file() else "is not a run folder"
        )
        raise UserError(f"run: {folder} {state}")
    return RunRecord(**json.loads((folder / "run.json").read_text()))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, in one move.

    Args:
        path: File to write.
        tensors: Name to tensor, on any device.
        metadata: What the file says about itself.
    """
    fresh = path.with_name(path.name + ".new")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, fresh, metadata)
    os.replace(fresh, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one move: a reader finds the old one or the new one, never half of it.

    Args:
        path: File to write.
        text: Its content.
    """
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
