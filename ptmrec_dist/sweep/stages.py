"""What a trial trains: stage 1 or stage 2. Whatever else a sweep does is the same for both.

Libraries of training are imported by the methods that train: the process that waits for a trial's ranks does without them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ptmrec_dist.config import Keep, Stage1Config, Stage2Config, SweepConfig, require_used, used_settings
from ptmrec_dist.config.recommenders import recommender_entry
from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.storage import is_url

if TYPE_CHECKING:
    from ptmrec_dist.training.session import Report

_INPUTS_OF_STAGE_2 = ("stage1", "shards", "features", "encoder", "image_encoder", "text_encoder")


@dataclass(frozen=True)
class Common:
    """What all trials of a sweep have in common."""

    part: str
    """Deciding part of the data."""
    keep: Keep
    """Which epoch of a trial is kept."""
    epochs: int
    """Largest number of epochs of a trial."""
    inputs: dict[str, str]
    """Name of each input to its fingerprint."""
    tags: dict[str, str]
    """Lineage for the tracker."""
    parent: str | None = None
    """MLflow run that the sweep's is shown under."""


class Stage(Protocol):
    """What a trial trains."""

    settings: type
    """Settings of the command."""
    option: str
    """Setting of the sweep that holds those that are the same in all trials."""
    chooser: str
    """Setting whose choices have settings of their own, which the others do not read."""
    decided: frozenset[str]
    """Settings that the sweep gives each trial itself."""
    shared: frozenset[str]
    """Other settings that cannot differ between trials: what these are made from, and how they are compared."""

    def given(self, config: SweepConfig) -> dict[str, Any]:
        """Return the settings that the sweep gives each trial, inputs that were moved among them."""

    def used(self, config: SweepConfig, plain: dict[str, Any]) -> dict[str, Any]:
        """Leave out settings of choices that a trial does not make but others of the sweep do."""

    def check(self, config: SweepConfig, points: Sequence[Any]) -> Common:
        """Check parsed settings against the inputs; what a trial would refuse is a `UserError` here."""

    def train(self, settings: Any, with_test: bool, report: "Report") -> None:
        """Train a run. Collective: every rank must call this."""

    def result(self, plain: Mapping[str, Any], run: Path) -> Path:
        """Say which folder has the result of a run whose test split is read: its own, or that of its refit."""


class Stage1:
    """Recommenders on frozen features."""

    settings: type = Stage1Config
    option = "train"
    chooser = "recommender"
    decided = frozenset({"out", "device", "tracking"})
    shared = frozenset({"shards", "features", "from_run", "from_shards", "epochs"})

    def given(self, config: SweepConfig) -> dict[str, Any]:
        """Return the device, and the inputs that are named beside `train`."""
        return {"device": config.device} | _paths(config, "shards", "features")

    def used(self, config: SweepConfig, plain: dict[str, Any]) -> dict[str, Any]:
        """Leave out hyper-parameters of other recommenders of the search; what none of them has, the parser refuses."""
        own, model = plain.get("recommender", Stage1Config.recommender), plain.get("model")
        if not isinstance(model, Mapping):
            return plain
        others = {name for choice in _choices(config, "recommender") for name in _hyperparameters(choice)}
        foreign = others - _hyperparameters(own)
        return plain | {"model": {name: value for name, value in model.items() if name not in foreign}}

    def check(self, config: SweepConfig, points: Sequence[Stage1Config]) -> Common:
        """Check each recommender of the search against data set and features."""
        from ptmrec_dist.data.dataset import Dataset
        from ptmrec_dist.training.ranking_evaluation import DECIDING_PART
        from ptmrec_dist.training.stage1 import check_start

        first = points[0]
        for name in ("shards", "features"):
            path = getattr(first, name)
            if path is not None and is_url(path):
                raise UserError(f"train.{name}: got {path}, expected a local path; give a URL by --{name}")
        dataset, inputs = Dataset(first.shards, with_test=False), dict[str, str]()
        for settings in {str(vars(one) | {"model": None, "lr": None}): one for one in points}.values():
            inputs |= check_start(settings, dataset).record.inputs
        if any(isinstance(one.model, SequenceConfig) for one in points):
            dataset.require_times("train")
        tags = {"data": dataset.fingerprint}
        tags |= {"started_from": inputs["from_run"]} if "from_run" in inputs else {}
        return Common(DECIDING_PART, "best", first.epochs, inputs, tags)

    def train(self, settings: Stage1Config, with_test: bool, report: "Report") -> None:
        """Train a recommender."""
        from ptmrec_dist.data.dataset import Dataset
        from ptmrec_dist.training.stage1 import train_on

        train_on(settings, Dataset(settings.shards, with_test), report)

    def result(self, plain: Mapping[str, Any], run: Path) -> Path:
        """Return the run's folder."""
        return run


class Stage2:
    """Encoders tuned from a run of stage 1."""

    settings: type = Stage2Config
    option = "stage2"
    chooser = "tuning.method"
    decided = frozenset({*_INPUTS_OF_STAGE_2, "out", "device", "tracking"})
    shared = frozenset({"select_on", "keep", "epochs"})

    def given(self, config: SweepConfig) -> dict[str, Any]:
        """Return the device, the run of stage 1, and those of its inputs that were moved."""
        return {"device": config.device} | _paths(config, *_INPUTS_OF_STAGE_2)

    def used(self, config: SweepConfig, plain: dict[str, Any]) -> dict[str, Any]:
        """Leave out settings of tuning methods that the trial does not use."""
        return used_settings(plain)

    def check(self, config: SweepConfig, points: Sequence[Stage2Config]) -> Common:
        """Check tuning methods against the encoder that the features of stage 1 came from."""
        from ptmrec_dist.evaluation.metrics import selecting_part
        from ptmrec_dist.training.finished_run import load_run
        from ptmrec_dist.training.tune import check_start

        groups = (key.split(".")[0] for key in (*config.space, *config.stage2))
        require_used(groups, {point.tuning.method for point in points})
        for size in (point.batch_size for point in points):
            if size % config.ranks:
                expected = f"a multiple of the {config.ranks} ranks of a trial"
                raise UserError(f"batch_size: got {size}, expected {expected}")
        assert config.stage1 is not None  # SweepConfig refused neither
        start = load_run(config.stage1, config, with_test=False, name="stage1")
        for settings in {str((one.tuning, one.select_on)): one for one in points}.values():
            check_start(settings, start)  # the encoder refuses methods that its towers do not support
        first, record = points[0], start.record
        part = selecting_part(start.dataset.parts, first.select_on)
        tags = {"data": start.dataset.fingerprint, "started_from": record.fingerprint}
        return Common(part, first.keep, first.epochs, record.inputs, tags, record.mlflow_run)

    def train(self, settings: Stage2Config, with_test: bool, report: "Report") -> None:
        """Tune an encoder; a refit follows where the test split is read, since trials are compared by stage 2 itself."""
        from ptmrec_dist.training.finished_run import load_run
        from ptmrec_dist.training.refit import refit_if_asked
        from ptmrec_dist.training.stage2 import tune_from

        tune_from(settings, load_run(settings.stage1, settings, with_test), report)
        if with_test:
            refit_if_asked(settings)

    def result(self, plain: Mapping[str, Any], run: Path) -> Path:
        """Return the folder of the refit, where the settings ask for one."""
        from ptmrec_dist.training.refit import REFIT_FOLDER

        return run / REFIT_FOLDER if plain.get("refit") else run


STAGES: dict[str, Stage] = {"stage1": Stage1(), "stage2": Stage2()}
"""Command to what a trial trains by it."""


def command_of(config: SweepConfig) -> str:
    """Say which command a sweep searches the settings of.

    Args:
        config: Settings of the sweep.

    Returns:
        A key of `STAGES`.
    """
    return "stage1" if config.train else "stage2"


def _paths(config: SweepConfig, *names: str) -> dict[str, str]:
    """Those of the sweep's paths that are given, absolute."""
    given = {name: getattr(config, name) for name in names}
    return {name: str(path.resolve()) for name, path in given.items() if path is not None}


def _choices(config: SweepConfig, key: str) -> list[Any]:
    choices: list[Any] = config.space.get(key, {}).get("choice", [])
    return choices


def _hyperparameters(recommender: str) -> set[str]:
    return {item.name for item in fields(recommender_entry(recommender).config)}
