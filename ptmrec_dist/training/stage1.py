"""Stage 1: train a recommender on the frozen encoder's features (PTMRec section 2.2).

ptmrec stage1 --shards shards/movies --features features/movies --recommender vbpr --out runs/a         # one process
deepspeed --num_gpus 2 launchers/stage1.py --shards shards/movies --recommender lightgcn --out runs/a   # over ranks

Over ranks every rank holds the whole graph and samples the whole global batch, the same on all (or is refused), and takes its
part of the rows: N ranks train as one process would on the same batches.
"""

from dataclasses import replace
from functools import partial

import torch
from safetensors.torch import load_file

from ptmrec_dist.allocator import keep_freed_memory
from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore
from ptmrec_dist.distributed import World, barrier, join_world, require_same_random_numbers
from ptmrec_dist.distributed.engine import Engine, make_engine
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.training.batches import InteractionBatches
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluate import Evaluator, Metrics, evaluate_phases
from ptmrec_dist.training.finished_run import neighbour_cache, tensors_of
from ptmrec_dist.training.inputs import modalities_of, open_store, untrained_record
from ptmrec_dist.training.objectives.ranking import Ranking
from ptmrec_dist.training.optim import schedule_of
from ptmrec_dist.training.records import RECOMMENDER_FILE
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.session import Session, open_session
from ptmrec_dist.training.trainer import Plan, Trainer

_CHECK_EVERY = 100  # steps; each read waits for the device


@exclusive_out
def train_stage1(config: Stage1Config) -> None:
    """Train a recommender and write its run folder (`ptmrec stage1`, `launchers/stage1.py`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Features that are missing or of other data, a run folder of other settings, an unknown hyper-parameter.
        Fault: A rank was lost.
    """
    keep_freed_memory()
    dataset = Dataset(config.shards)
    dataset.require("validation")
    store = open_store(config, dataset)
    start = untrained_record(config, dataset, store)
    run = RunFolder(config.out, config, start.inputs)
    if run.is_complete:
        print(f"{config.out} is complete; nothing to do")
        return
    world = join_world(config.device, config.timeout)
    require_same_random_numbers(len(dataset.interactions("train").items), world)
    objective = make_objective(config, dataset, store, world)
    with open_session(config, run, world, {"stage": "1", "data": dataset.fingerprint}) as session:
        evaluation = RankingEvaluation(session, objective, dataset)
        trainer = make_trainer(config, session, objective, dataset, evaluation)
        if not trainer.fit():
            return
        if trainer.state.stopping.kept is None:  # no epoch was asked for
            evaluation.keep()
        record = replace(
            start,
            stage=1,
            train_features=config.train_features,
            mask_validation_at_test=config.mask_validation_at_test,
            parameters=objective.parameter_counts(),
            kept_epoch=trainer.state.stopping.kept_epoch,
        )
        session.finish(record, evaluation.final(config.mask_validation_at_test))
        if world.is_first:
            counts, state = record.parameters, "trained" if config.train_features else "frozen"
            print(
                f"parameters: {counts['trainable']:,} trainable; {counts['ids']:,} of IDs, {counts['rest']:,} of the rest, "
                f"{counts['feature_tables']:,} of feature tables ({state})"
            )


def make_objective(config: Stage1Config, dataset: Dataset, store: FeatureStore | None, world: World) -> Ranking:
    """Build the recommender and its features.

    Collective: every rank must call this.

    Args:
        config: Settings.
        dataset: Packed data set.
        store: What `open_store` returned.
        world: This rank and its peers.

    Returns:
        The objective, on the rank's device.

    Raises:
        UserError: Bad features.
    """
    torch.manual_seed(config.seed)
    modalities = modalities_of(config, store)
    features = tensors_of(store, modalities)
    recommender = build_recommender(
        config.recommender,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=dataset.interactions("train"),
        features=features,
        modalities=modalities,
        cache=neighbour_cache(store),
        world=world,
        config=config.model,
    ).to(world.device)
    tables = {modality: table.to(world.device) for modality, table in features.items()}
    return Ranking(recommender, tables, config.train_features, world)


def make_trainer(
    config: Stage1Config,
    session: Session,
    objective: Ranking,
    dataset: Dataset,
    evaluation: "RankingEvaluation | None" = None,
) -> Trainer:
    """Build optimiser, engine, batches and trainer.

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
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.lr, fused=True)
    engine = make_engine(objective, optimizer, session.world, zero_stage=config.zero.stage)
    batches = InteractionBatches(dataset.interactions("train"), dataset.num_users, config.batch_size, session.world)
    plan = Plan(
        epochs=config.epochs,
        checkpoint_every=config.checkpoint_every,
        check_every=_CHECK_EVERY,
        evaluate_every=config.eval_every,
        seed=config.seed,
        checkpoint_epochs=False,
        remedy="lower --lr, or check the features for huge values",
    )
    stopping = EarlyStopping(config.patience, after=config.patience_after // batches.steps(0))
    schedule = partial(schedule_of, optimizer, "constant", 0)
    return Trainer(session, objective, engine, batches, schedule, plan, stopping, evaluation)


class RankingEvaluation:
    """Evaluation of a recommender between epochs; the best on known items is kept: their vectors are what is trained.

    Args:
        session: The run while it trains.
        objective: Recommender and features.
        dataset: Packed data set.
    """

    def __init__(self, session: Session, objective: Ranking, dataset: Dataset) -> None:
        self.world, self.objective, self.dataset = session.world, objective, dataset
        self.path = session.run.folder / RECOMMENDER_FILE
        self.evaluator = Evaluator(dataset, "validation")

    def measure(self, engine: Engine) -> Metrics:
        """Evaluate on validation."""
        if self.evaluator.cold_items is not None:
            self.objective.recommender.fit_projections(self.objective.features)
        return self.evaluator(self.objective.recommender, self.objective.features, self.world)

    def deciding_part(self, metrics: Metrics) -> str:
        """Return `validation`."""
        return "validation"

    def keep(self) -> None:
        """Write the weights."""
        if self.world.is_first:
            save_tensors(self.path, self.objective.weights())

    def final(self, mask_validation: bool) -> Metrics:
        """Evaluate what was kept on every part, the test split for the first time, with maps for cold items fitted to it.

        Collective: every rank must call this.

        Args:
            mask_validation: Leave validation positives out of the ranking at test time.

        Returns:
            Metrics of every part.
        """
        barrier()
        self.objective.load_weights(load_file(self.path))
        self.objective.recommender.fit_projections(self.objective.features)
        barrier()
        self.keep()
        features = self.objective.features
        return evaluate_phases(self.dataset, self.objective.recommender, features, self.world, mask_validation)
