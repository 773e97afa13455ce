"""Train encoder and recommender together, as stage 2 and joint training do: from a run, or from scratch."""

from typing import Any

import numpy as np
import torch

from ptmrec_dist.config import JointConfig, TrainsBoth, method_entry
from ptmrec_dist.config.recommenders import multimodal_recommenders
from ptmrec_dist.data.pairs import InteractionMajor, ItemMajor
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import check_image_size, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import load_backbone_of
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import recent_items
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.batches import Batches, StreamedBatches, item_stream, rows_per_rank
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.finished_run import FinishedRun
from ptmrec_dist.training.frozen_states import store_frozen_states
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.objectives.transfer import Transfer, TransferSettings
from ptmrec_dist.training.objectives.tuned import TrainsEncoder
from ptmrec_dist.training.optim import adamw
from ptmrec_dist.training.plan import tuning_plan
from ptmrec_dist.training.records import require_encoder
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.session import Report, Session, open_session, report_complete
from ptmrec_dist.training.trainer import Trainer
from ptmrec_dist.training.tuned_evaluation import TunedEvaluation


def tune(
    config: TrainsBoth, start: FinishedRun, transfer: TransferSettings | None = None, report: Report | None = None
) -> None:
    """Train encoder and recommender together from where a run stands, and write the run folder.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: A run of stage 1, or an untrained recommender. Where its data set does not show the test split, the run ends
            with metrics of validation alone.
        transfer: Knowledge transfer; None trains without a teacher.
        report: Called with each evaluation on every rank, also with those that an interrupted run had made before.

    Raises:
        UserError: A run that is not of stage 1, ID-only or of other data; another encoder; a method that a tower cannot take; a
            batch that cannot be divided over the ranks; a run folder of other settings.
    """
    run = RunFolder(config.out, config, start.record.inputs)
    if report_complete(run, config.tracking):
        return
    encoder = check_start(config, start)
    world = join_world(config.device, config.timeout)
    rows = rows_per_rank(config.batch_size, world)
    torch.manual_seed(config.seed)
    batches = _batches(config, start, encoder, world, rows)
    objective = _objective(config, start, encoder, transfer or TransferSettings(), world, rows)
    train_both(config, run, start, objective, batches, report)


def train_both(
    config: TrainsBoth,
    run: RunFolder,
    start: FinishedRun,
    objective: TrainsEncoder,
    batches: Batches,
    report: Report | None = None,
) -> None:
    """Train an objective of encoder and recommender to the end, from the newest checkpoint of its run if there is one.

    Collective: every rank must call this.

    Args:
        config: Settings.
        run: The run's folder.
        start: What encoder and recommender started from.
        objective: Encoder and recommender.
        batches: What each step is made on.
        report: As for `tune`.
    """
    world = join_world(config.device, config.timeout)
    if config.cuda_graphs and objective.encoder is not None:
        objective.encoder.record(world.device)
    tags = {"stage": "2", "data": start.dataset.fingerprint, "started_from": start.record.fingerprint or "scratch"}
    with open_session(config, run, world, tags, parent=start.record.mlflow_run, report=report) as session:
        store_frozen_states(config, session, start.dataset, objective.encoder)
        evaluation = TunedEvaluation(config, session, objective, start)
        trainer = make_trainer(config, session, objective, batches, evaluation)
        if not trainer.state.history:
            stored = bool(objective.features) and start.record.source is None  # those of the encoder as it is
            evaluation.features_are_current = stored and method_entry(config.tuning.method).neutral_start
            # Otherwise all items would be encoded before the first step, which is worth it where something reads the result.
            if evaluation.features_are_current or trainer.plan.evaluate_every == 1 or not config.epochs:
                trainer.evaluate()
        if trainer.fit():
            evaluation.finish(trainer.state.stopping.kept_epoch)


def check_start(config: TrainsBoth, start: FinishedRun, stale: bool = False) -> Encoder | None:
    """Check that stage 2 can start from a run, and load the encoder that its features came from.

    Args:
        config: Settings.
        start: A run of stage 1, or an untrained recommender.
        stale: The stored features came from another encoder than the one that is trained, which another run tuned.

    Returns:
        The encoder, ready to be tuned, with the towers that are tuned, or all of them where the stored features are not what
        the recommender reads; None where all features stay frozen.

    Raises:
        UserError: A run that is not of stage 1, is ID-only, has no linear maps of features or trained its feature tables;
            another encoder; a method that it cannot take.
    """
    record, made_by = start.record, _encoder_of(start)
    require_content(start.dataset, *record.modalities)
    start.dataset.require("validation")
    if config.select_on not in ("auto", *start.dataset.parts):
        raise UserError(f"select_on: got {config.select_on}, but the split has {', '.join(start.dataset.parts)}")
    whole = stale or (isinstance(config, JointConfig) and reads_tokens(config, start.recommender))
    if config.tuning.method == "none" and not whole:
        return None
    require_encoder(record, start.folder)
    backbone = load_backbone_of(made_by)
    encoder = Encoder(backbone, tuple(record.modalities), config.precision, config.tuning.gradient_checkpointing)
    encoder.tune(config.tuning.method, config.tuning.settings, torch.Generator().manual_seed(config.seed))
    if not whole:
        encoder.drop_frozen_towers()
    encoder.sort_by_length = config.zero.stage < 3
    check_image_size(start.dataset, encoder, config.strict)
    return encoder


def _encoder_of(start: FinishedRun) -> dict[str, Any]:
    """Settings and fingerprint of the encoder that a run's features came from; refuses a run that it cannot be tuned for."""
    record = start.record
    if record.stage > 1:
        raise UserError(f"stage1: {start.folder} is a run of stage {record.stage}; expected one of `ptmrec stage1`")
    if not start.recommender.multimodal:
        raise UserError(
            f"recommender: {record.recommender} knows items by their IDs only, which no encoder changes; expected one that "
            f"reads features: {multimodal_recommenders()}"
        )
    if not isinstance(start.recommender, SequenceRecommender):
        start.recommender.cold_map()  # refuses a recommender that has none
    if record.encoder is None:
        remedy = "extract them by `ptmrec features --encoder.model` to tune one"
        if not start.dataset.manifest.modalities:
            remedy = f"{start.dataset.folder} has nothing to read either: pack a catalogue with --items, and {remedy}"
        raise UserError(f"features: those of {start.folder} came from arrays, which no encoder gives; {remedy}")
    if record.train_features:
        raise UserError(
            "stage1: its feature tables were trained and no encoder gives them; train without --train_features"
        )
    return record.encoder


def reads_tokens(config: JointConfig, recommender: Recommender) -> bool:
    """Tell whether a recommender that learns with its encoder reads the encoder's tokens, and not its features.

    Args:
        config: Settings.
        recommender: The recommender.

    Returns:
        Whether it does.
    """
    return config.tokens and isinstance(recommender, SequenceRecommender) and recommender.reads_tokens


def make_trainer(
    config: TrainsBoth,
    session: Session,
    objective: TrainsEncoder,
    batches: Batches,
    evaluation: TunedEvaluation | None = None,
) -> Trainer:
    """Build optimiser and trainer.

    Collective: every rank must call this.

    Args:
        config: Settings.
        session: The run while it trains.
        objective: Encoder and recommender.
        batches: What each step is made on.
        evaluation: What follows epochs.

    Returns:
        The trainer, ready for its first step.
    """
    encoder, optim = objective.encoder, config.optim
    optimizer = adamw(
        objective,
        optim.weight_decay,
        (() if encoder is None else encoder.parameters(), config.encoder_lr),
        (objective.recommender.parameters(), optim.recommender_lr),
    )
    every = config.refresh_every
    if every is None:
        read = config.keep == "best" or session.report is not None or objective.recommender.propagates_features
        every = 1 if read else max(config.epochs, 1)
    plan = tuning_plan(config, evaluate_every=every)
    return Trainer(
        session, objective, optimizer, batches, plan, EarlyStopping(config.patience, config.keep), evaluation
    )


def _objective(
    config: TrainsBoth, start: FinishedRun, encoder: Encoder | None, transfer: TransferSettings, world: World, rows: int
) -> Transfer:
    return Transfer(
        None if encoder is None else encoder.to(world.device),
        start.recommender.to(world.device),
        {modality: table.to(world.device) for modality, table in start.features.items()},
        KnownPositives(start.dataset.interactions("train"), start.dataset.num_items, world.device),
        transfer,
        config.seed,
        rows=rows,
        has={modality: torch.from_numpy(start.dataset.has(modality)).to(world.device) for modality in start.features},
        recent=recent_items(start.recommender, start.dataset, ("train",), world.device),
    )


def _batches(
    config: TrainsBoth, start: FinishedRun, encoder: Encoder | None, world: World, rows: int
) -> StreamedBatches:
    dataset, train = start.dataset, start.dataset.interactions("train")
    reader = Reader() if encoder is None else reader_of(encoder)
    if config.batching == "interaction":
        files = ItemFiles(dataset, reader, config.max_damaged)
        pairs = InteractionMajor(files, train, world.rank, world.size, rows, config.seed)
        return StreamedBatches(pairs, config.accumulation)
    wanted = np.bincount(train.items, minlength=dataset.num_items) > 0
    stream = item_stream(config, dataset, reader, world, rows, wanted=wanted, seed=config.seed)
    items = ItemMajor(stream, train, dataset.num_items, config.users_per_item, config.seed)
    return StreamedBatches(items, config.accumulation, f"{dataset.manifest.layout} on {world.size} ranks")
