"""Refit: train the recommender again, as stage 1 does, on the features of an encoder that was tuned.

ptmrec refit --run runs/b --out runs/c                                    # one process
ptmrec stage2 --stage1 runs/a --out runs/b --refit true                   # after stage 2, in runs/b/refit
deepspeed --num_gpus 2 launchers/refit.py --run runs/b --out runs/c       # over ranks

Stage 2 leaves a better encoder, but its recommender took few steps on features that moved. The run that is written is one of
stage 1 on the tuned features: its lineage names the tuned encoder, which therefore also serves new items.
"""

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from ptmrec_dist.config import (
    JointConfig,
    ReadsRun,
    RefitConfig,
    Stage1Config,
    Stage2Config,
    from_plain,
    plain_settings,
)
from ptmrec_dist.config.common import require
from ptmrec_dist.data.feature_store import read_feature_manifest
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.files import read_yaml
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders.sequential.fusion import FUSED
from ptmrec_dist.training.finished_run import open_data_of, open_features_of
from ptmrec_dist.training.inputs import untrained_record
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.printing import print_comparison, stages_of
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE, RunRecord, read_record, require_files
from ptmrec_dist.training.run_folder import INCIDENTAL, PATHS, RunFolder
from ptmrec_dist.training.stage1 import batch_size_of, initial_factors, learning_rate_of, train_recommender

REFIT_FOLDER = "refit"
"""In the folder of a run that was asked for its refit: the run folder of the latter."""
_SLOWER = 3
"""Stage 1's learning rate is divided by this for a recommender that has been trained already."""
_SHARED = {item.name for item in fields(RefitConfig)} & {item.name for item in fields(Stage1Config)}


@exclusive_out
def refit(config: RefitConfig) -> None:
    """Train the recommender on the tuned features and write the run folder (`ptmrec refit`, `launchers/refit.py`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: A run that is missing, unfinished, of stage 1 or without a tuned encoder; data or a run of stage 1 other than
            those it was made from; a run folder of other settings.
        Fault: A rank was lost.
    """
    begun = _read_start(config)
    first = _stage1_of(config, begun)
    settings = _settings(config, begun, first)
    dataset = open_data_of(config.run, begun)
    dataset.require("validation")
    store = open_features_of(config.run, begun, dataset)
    slower = _SLOWER if config.start == "run" and config.lr is None else 1
    learning_rate = learning_rate_of(settings, dataset) / slower
    settings = replace(settings, batch_size=batch_size_of(settings, dataset), lr=learning_rate)
    reference = reference_to(config.run, begun.fingerprint)
    stage1 = None if first is None or begun.stage1 is None else begun.stage1 | {"path": str(first.resolve())}
    start = replace(untrained_record(settings, dataset, store), stage1=stage1, stage2=reference)
    chosen = {name: getattr(settings, name) for name in _SHARED} | {"model": asdict(settings.model)}
    run = RunFolder(config.out, replace(config, **chosen), start.inputs)
    take_over = partial(_take_over, config.run) if config.start == "run" else initial_factors(settings, dataset)
    train_recommender(settings, run, dataset, store, start, take_over, parent=begun.mlflow_run)
    if run.is_complete and join_world(config.device, config.timeout).is_first:
        print_comparison(stages_of(config.out, start))


def refit_if_asked(config: Stage2Config | JointConfig) -> None:
    """Refit a run that has just been trained, where its settings ask for it and it was not interrupted.

    Collective: every rank must call this.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The folder of the refit holds something else.
        Fault: A rank was lost.
    """
    if not config.refit or not (config.out / "metrics.json").is_file():
        return
    refit(
        RefitConfig(
            run=config.out,
            out=config.out / REFIT_FOLDER,
            shards=config.shards,
            stage1=config.stage1 if isinstance(config, Stage2Config) else None,
            seed=config.seed if isinstance(config, JointConfig) else None,  # by default that of stage 1
            timeout=config.timeout,
            device=config.device,
            tracking=replace(config.tracking, parent=None),  # under the run that was refitted
        )
    )


def _take_over(run: Path, objective: RecommenderObjective, world: World) -> None:
    try:
        objective.recommender.load_state_dict(load_file(run / RECOMMENDER_FILE))
    except RuntimeError as error:
        raise UserError(
            f"model: these hyper-parameters do not fit the weights to start from ({on_one_line(error)}); refit by "
            "--start scratch"
        ) from error


def _read_start(config: RefitConfig) -> RunRecord:
    record = read_record(config.run, ReadsRun(shards=config.shards))
    expected = "expected one of `ptmrec stage2` or `ptmrec joint` that tuned an encoder"
    if record.stage == 1:
        raise UserError(f"run: {config.run} is a run of stage 1; {expected}")
    if not (config.run / ENCODER_FILE).is_file():
        raise UserError(f"run: {config.run} left its encoder frozen (--tuning.method none); {expected}")
    if FUSED in read_feature_manifest(config.run / "features").widths:
        raise UserError(
            f"run: {config.run} reads features made by its own recommender's fusion, which a refit would not train; expected a "
            "run whose features are those of its encoder"
        )
    return record


def _stage1_of(config: RefitConfig, begun: RunRecord) -> Path | None:
    """Find the run of stage 1 that a run of stage 2 started from; joint training started from none."""
    recorded = begun.stage1
    if recorded is None:
        require(config.stage1 is None, "stage1", config.stage1, "none: the run was not started from one")
        return None
    folder = config.stage1 or Path(recorded["path"])
    require_files("stage1", str(folder), config.run)
    found = read_record(folder, name="stage1").fingerprint
    if found != recorded["fingerprint"]:
        raise UserError(
            f"stage1: {folder} is {found[:12]}, but {config.run} started from {recorded['fingerprint'][:12]}; give the folder "
            "of the latter by --stage1"
        )
    return folder


def _settings(config: RefitConfig, begun: RunRecord, stage1: Path | None) -> Stage1Config:
    """Settings of stage 1 as it was trained, or its defaults where there was none, and what was given instead."""
    recorded = {} if stage1 is None else read_yaml(stage1 / "config.yaml", "stage1")
    learnt = {name: value for name, value in recorded.items() if name not in INCIDENTAL | PATHS}
    given = {name: value for name, value in plain_settings(config).items() if name in _SHARED and value is not None}
    of_run = {
        "shards": begun.data["path"],
        "features": str((config.run / "features").resolve()),
        "recommender": begun.recommender,
        "modalities": "auto",  # the run's features are those that its recommender reads
        "model": {**begun.hyperparameters, **config.model},
        "mask_validation_at_test": begun.mask_validation_at_test,
        "mask_history": begun.mask_history,
    }
    return from_plain(Stage1Config, {**learnt, **given, **of_run})
