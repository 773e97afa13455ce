"""Stage 1: train a recommender on the frozen encoder's features (PTMRec section 2.2).

ptmrec stage1 --shards shards/movies --features features/movies --recommender vbpr --out runs/a         # one process
ptmrec stage1 --shards shards/new --features features/new --from runs/a --out runs/b      # continued on newer data
deepspeed --num_gpus 2 launchers/stage1.py --shards shards/movies --recommender lightgcn --out runs/a   # over ranks

Over ranks every rank holds the whole graph and samples the whole global batch, the same on all (or is refused), and takes its
part of the rows: N ranks train as one process would on the same batches. With `--tables rows` each holds a part of the tables.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ptmrec_dist.allocator import keep_freed_memory
from ptmrec_dist.config import Stage1Config
from ptmrec_dist.config.common import require
from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World, join_world, require_same_random_numbers
from ptmrec_dist.evaluation.scoring import recent_items
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders import recommender_class
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.batches import Batches, InteractionBatches
from ptmrec_dist.training.continuing import PreviousRun
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.factors import start_from_als
from ptmrec_dist.training.finished_run import recommender_on, tensors_of
from ptmrec_dist.training.inputs import open_store, untrained_record
from ptmrec_dist.training.objectives.ranking import Ranking
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.objectives.sequence import NextItem
from ptmrec_dist.training.plan import Plan
from ptmrec_dist.training.ranking_evaluation import RankingEvaluation
from ptmrec_dist.training.records import RunRecord
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.sequence_batches import SequenceBatches, require_negatives
from ptmrec_dist.training.session import Report, Session, open_session, report_complete
from ptmrec_dist.training.trainer import Trainer

_CHECK_EVERY = 100  # steps; each read waits for the device
_BATCH_SIZE, _STEPS = 2048, 200

TakeOver = Callable[[RecommenderObjective, World], None]
"""Overwrites initial weights by those that a run starts from."""


@exclusive_out
def train_stage1(config: Stage1Config) -> None:
    """Train a recommender and write its run folder (`ptmrec stage1`, `launchers/stage1.py`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Features that are missing or of other data, a run folder of other settings, an unknown hyper-parameter, a
            run to continue that does not fit.
        Fault: A rank was lost.
    """
    train_on(config, Dataset(config.shards))


def train_on(config: Stage1Config, dataset: Dataset, report: Report | None = None) -> None:
    """Train a recommender on an opened data set.

    Collective: every rank must call this.

    Args:
        config: Settings.
        dataset: Their data set. Where it does not show the test split, the run ends with metrics of validation alone.
        report: Called with each evaluation on every rank, also with those that an interrupted run had made before.

    Raises:
        UserError: As for `train_stage1`.
        Fault: A rank was lost.
    """
    start = check_start(config, dataset)
    config = replace(config, batch_size=batch_size_of(config, dataset), lr=learning_rate_of(config, dataset))
    run = RunFolder(config.out, config, start.record.inputs)
    train_recommender(config, run, dataset, start.store, start.record, start.take_over, report=report)


@dataclass(frozen=True)
class Start:
    """What a run of stage 1 starts from."""

    store: FeatureStore | None
    """The features; None for an ID-only recommender."""
    record: RunRecord
    """Lineage."""
    take_over: TakeOver | None
    """Sets the weights to start from; None leaves new ones as they were sampled."""


def check_start(config: Stage1Config, dataset: Dataset) -> Start:
    """Check that stage 1 can start, and open what it starts from.

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        Features, lineage and weights.

    Raises:
        UserError: As for `train_stage1`, but for its run folder.
    """
    recommender = recommender_class(config.recommender)
    whole = config.tables == "whole" or recommender.cuts_tables
    require(whole, "tables", config.tables, f"whole with {config.recommender}, which reads more than a batch's rows")
    starts = config.init is None or recommender.starts_from_factors
    require(starts, "init", config.init, f"none with {config.recommender}, which cannot start from factors")
    trainable = recommender.trains_features or not config.train_features
    require(trainable, "train_features", True, f"False with {config.recommender}, which learns from codes of features")
    dataset.require("validation")
    store = open_store(config, dataset)
    record = untrained_record(config, dataset, store)
    if config.from_run is None:
        return Start(store, record, initial_factors(config, dataset))
    previous = PreviousRun(config, dataset, record)
    return Start(store, replace(record, previous=previous.reference), previous.take_over)


def batch_size_of(config: Stage1Config, dataset: Dataset) -> int:
    """Return the interactions per step: what was set, or what suits the size of the data.

    Sequence recommenders read the histories of a batch alone: a step of theirs costs the same however much data there
    is.

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        Interactions per step, over all ranks.
    """
    if config.batch_size is not None:
        return config.batch_size
    if isinstance(config.model, SequenceConfig):
        return _BATCH_SIZE
    return default_batch_size(len(dataset.interactions("train").users))


def default_batch_size(interactions: int) -> int:
    """Choose a batch size by which the time of an epoch is linear in the number of interactions.

    A step of a recommender that propagates takes time linear in it already, so that the number of steps has to be bounded.
    Amazon Baby, on which other defaults were chosen, has 58 steps of 2,048 interactions an epoch; here at least 200 are kept.

    Args:
        interactions: Training interactions.

    Returns:
        Interactions per step.
    """
    return max(_BATCH_SIZE, interactions // _STEPS)


def learning_rate_of(config: Stage1Config, dataset: Dataset) -> float:
    """Return Adam's learning rate: what was set, or what suits a batch that was chosen by the size of the data.

    Adam's rate grows with the square root of the batch (Malladi et al., 2022, "On the SDEs and scaling rules for adaptive
    gradient algorithms").

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        Learning rate.
    """
    if config.lr is not None or config.batch_size is not None:
        return config.learning_rate
    return config.learning_rate * math.sqrt(batch_size_of(config, dataset) / _BATCH_SIZE)


def initial_factors(config: Stage1Config, dataset: Dataset) -> TakeOver | None:
    """Choose what a run of new weights starts from.

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        What sets embeddings to factors of the interactions; None where the settings ask for random numbers.
    """
    if config.init is None:
        return None
    return partial(start_from_als, dataset, vars(config.model)["dim"], config.seed, config.timeout)


def train_recommender(
    config: Stage1Config,
    run: RunFolder,
    dataset: Dataset,
    store: FeatureStore | None,
    start: RunRecord,
    take_over: TakeOver | None = None,
    *,
    parent: str | None = None,
    report: Report | None = None,
) -> None:
    """Train a recommender on features as they are, and write its run folder.

    Collective: every rank must call this.

    Args:
        config: Settings.
        run: The run's folder.
        dataset: Packed data set.
        store: The features, or None for an ID-only recommender.
        start: Lineage of what the run starts from.
        take_over: Sets the weights to start from, which are evaluated as epoch 0; by default new ones.
        parent: MLflow run that this one is shown under.
        report: As for `train_on`.

    Raises:
        UserError: Bad features, weights that do not fit the settings, or ranks whose random numbers differ.
        Fault: A rank was lost.
    """
    keep_freed_memory()
    if report_complete(run, config.tracking):
        return
    world = join_world(config.device, config.timeout)
    require_same_random_numbers(len(dataset.interactions("train").items), world)
    objective = _starting_objective(config, dataset, store, world, take_over)
    with open_session(config, run, world, _tags(dataset, start), parent=parent, report=report) as session:
        evaluation = RankingEvaluation(config, session, objective, dataset)
        trainer = make_trainer(config, session, objective, dataset, evaluation)
        if take_over is not None and not trainer.state.history:
            trainer.evaluate()
        if trainer.fit():
            evaluation.finish(start, trainer.state.stopping)


def _starting_objective(
    config: Stage1Config, dataset: Dataset, store: FeatureStore | None, world: World, take_over: TakeOver | None
) -> RecommenderObjective:
    """The objective, with the weights that the run starts from."""
    objective = make_objective(config, dataset, store, world)
    if take_over is not None:
        take_over(objective, world)
    return objective


def _tags(dataset: Dataset, start: RunRecord) -> dict[str, str]:
    """What the tracker shows of the lineage."""
    started = {} if start.previous is None else {"started_from": start.previous["fingerprint"]}
    return {"stage": "1", "data": dataset.fingerprint} | started


def make_objective(
    config: Stage1Config, dataset: Dataset, store: FeatureStore | None, world: World
) -> RecommenderObjective:
    """Build the recommender, its features, and the objective that it is trained by.

    Collective: every rank must call this.

    Args:
        config: Settings.
        dataset: Packed data set.
        store: What `open_store` returned.
        world: This rank and its peers.

    Returns:
        The objective, on the rank's device.

    Raises:
        UserError: Bad features, or a recommender of the next item on interactions without times or in batches without
            negatives.
    """
    torch.manual_seed(config.seed)
    record = untrained_record(config, dataset, store)
    owners = world if config.tables == "rows" and world.size > 1 else None
    recommender = recommender_on(record, dataset, store, world, owners).to(world.device)
    features = tensors_of(store, record.modalities, owners)
    tables = {modality: table.to(world.device) for modality, table in features.items()}
    if isinstance(recommender, SequenceRecommender):
        sequences = TrainingSequences(dataset, recommender.history_length, config.sequences == "latest")
        require_negatives(config, sequences, batch_size_of(config, dataset), world)
        return NextItem(recommender, tables, config.train_features, world, sequences, config, config.seed)
    return Ranking(recommender, tables, config.train_features, world)


def make_trainer(
    config: Stage1Config,
    session: Session,
    objective: RecommenderObjective,
    dataset: Dataset,
    evaluation: RankingEvaluation | None = None,
) -> Trainer:
    """Build optimiser, batches and trainer.

    Collective: every rank must call this.

    Args:
        config: Settings.
        session: The run while it trains.
        objective: What `make_objective` returned.
        dataset: Packed data set.
        evaluation: What follows epochs.

    Returns:
        The trainer, ready for its first step.
    """
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.learning_rate, fused=True)
    batches = _batches(config, objective, dataset, session.world)
    plan = Plan(
        epochs=config.epochs,
        checkpoint_every=config.checkpoint_every,
        check_every=_CHECK_EVERY,
        evaluate_every=config.eval_every,
        seed=config.seed,
        zero_stage=config.zero.stage,
        checkpoint_epochs=False,
        remedy="lower --lr, or check the features for huge values",
    )
    after = config.patience_after // batches.steps(0)
    stopping = EarlyStopping(config.patience, after=after, growth=config.patience_growth)
    return Trainer(session, objective, optimizer, batches, plan, stopping, evaluation)


def _batches(config: Stage1Config, objective: RecommenderObjective, dataset: Dataset, world: World) -> Batches:
    if isinstance(objective, NextItem):
        return SequenceBatches(objective.sequences, batch_size_of(config, dataset), world, config.negatives)
    recent = recent_items(objective.recommender, dataset, ("train",), world.device)
    batches = InteractionBatches(
        dataset.interactions("train"), dataset.num_users, batch_size_of(config, dataset), world, recent
    )
    if world.is_first and batches.batch_size > _BATCH_SIZE:
        print(f"batch_size: {batches.batch_size:,} interactions per step, {batches.steps(0)} steps per epoch")
    return batches
