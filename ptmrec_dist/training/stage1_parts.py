"""What stage 1 is put together from before its first step, and what it leaves behind after its last.

Legend: B interactions of this rank, G interactions of the global batch, E training interactions, I items.
"""

import sys
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from ptmrec_dist.config import ChoosesRecommender, Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import FeatureStore, open_features
from ptmrec_dist.data.histories import RecentItems
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.engine import Engine, make_engine
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import recent_items
from ptmrec_dist.recommenders import build_recommender, recommender_class
from ptmrec_dist.recommenders.base import Batch, Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.loaded import neighbour_cache, tensors_of
from ptmrec_dist.training.meter import Meter
from ptmrec_dist.training.monitor import Monitor
from ptmrec_dist.training.negatives import NegativeSampler
from ptmrec_dist.training.records import RunRecord


class Objective(nn.Module):
    """A recommender and its features, as a function from a batch to its loss.

    Args:
        recommender: The recommender.
        features: Modality to table, float32 [I, d_m].
        train_features: Train the tables, too.
        world: This rank and its peers.
    """

    def __init__(self, recommender: Recommender, features: Features, train_features: bool, world: World) -> None:
        super().__init__()
        self.recommender, self.world = recommender, world
        self.trained = nn.ParameterDict(features if train_features else {})
        self.frozen = {} if train_features else dict(features)

    @property
    def features(self) -> dict[str, Tensor]:
        """Modality to table as it stands, float32 [I, d_m]."""
        return self.frozen | dict(self.trained.items())

    def forward(self, batch: Batch, rows: int) -> Tensor:
        """Compute this rank's contribution to the mean loss of a global batch.

        Every term is a mean over the rows of all ranks: a rank counts W / G times the sum of its rows, so that the mean over
        the W ranks, as data parallel training takes it of gradients, is exact however uneven their numbers of rows.

        Args:
            batch: This rank's rows.
            rows: Rows G of the global batch.

        Returns:
            Scalar.
        """
        features = self.features
        terms = self.recommender.loss(batch, self.recommender.tables(features), features)
        return torch.stack(list(terms.values())).sum() * (self.world.size / rows)

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the recommender, and the feature tables where they are trained."""
        tables = {f"features.{modality}": table for modality, table in self.trained.items()}
        return self.recommender.state_dict() | tables

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave.

        Args:
            state: Name to tensor.
        """
        with torch.no_grad():
            for modality, table in self.trained.items():
                table.copy_(state.pop(f"features.{modality}"))
        self.recommender.load_state_dict(state)


@dataclass
class Stage1:
    """Everything that a step of stage 1 touches."""

    config: Stage1Config
    """Settings."""
    dataset: Dataset
    """Packed data set."""
    store: FeatureStore | None
    """Frozen features; None for ID-only recommenders."""
    objective: Objective
    """The recommender and its features, on their device."""
    engine: Engine
    """Turns a loss into a step."""
    users: Tensor
    """User of each training interaction, int64 [E], on the device."""
    items: Tensor
    """Item of each training interaction, int64 [E], on the device."""
    negatives: NegativeSampler
    """Draws items that a user did not take."""
    recent: RecentItems | None
    """What each user interacted with before, if the recommender reads histories."""
    world: World
    """This process and its peers."""
    monitor: Monitor
    """Reads the losses at the end of an epoch."""
    watch: Heartbeat
    """Watches over the ranks while they train."""
    meter: Meter = field(default_factory=Meter)
    """Time and memory of the epochs."""

    @property
    def recommender(self) -> Recommender:
        """The recommender."""
        return self.objective.recommender


def open_store(config: ChoosesRecommender, dataset: Dataset) -> FeatureStore | None:
    """Open the features that a recommender reads.

    Args:
        config: Settings.
        dataset: Packed data set.

    Returns:
        The features, or None for an ID-only recommender.

    Raises:
        UserError: Features that are missing or of other data.
    """
    if not recommender_class(config.recommender).multimodal:
        return None
    if config.features is None:
        raise UserError(
            f"features: {config.recommender} reads images and texts; add --features, or choose an ID-only one"
        )
    return open_features(config.features, dataset.fingerprint, dataset.num_items)


def prepare(config: Stage1Config, dataset: Dataset, store: FeatureStore | None, world: World) -> Stage1:
    """Put model, engine and data together.

    Collective: every rank must call this.

    Args:
        config: Settings.
        dataset: Packed data set.
        store: What `open_store` gave.
        world: This rank and its peers.

    Returns:
        Stage 1, ready for its first step.

    Raises:
        UserError: An unknown hyper-parameter, or bad features.
    """
    torch.manual_seed(config.seed)
    train = dataset.interactions("train")
    modalities = modalities_of(config, store)
    features = tensors_of(store, modalities)
    recommender = build_recommender(
        config.recommender,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        train=train,
        features=features,
        modalities=modalities,
        cache=neighbour_cache(store),
        world=world,
        config=config.model,
    ).to(world.device)
    tables = {modality: table.to(world.device) for modality, table in features.items()}
    objective = Objective(recommender, tables, config.train_features, world)
    return Stage1(
        config=config,
        dataset=dataset,
        store=store,
        objective=objective,
        engine=_engine(objective, config, world),
        users=torch.tensor(train.users, device=world.device),
        items=torch.tensor(train.items, device=world.device),
        negatives=NegativeSampler(train, dataset.num_users, world.device),
        recent=recent_items(recommender, dataset, ("train",), world.device),
        world=world,
        monitor=Monitor(world, every=sys.maxsize, remedy="lower --lr, or check the features for huge values"),
        watch=Heartbeat(world, config.timeout),
    )


def _engine(objective: Objective, config: Stage1Config, world: World) -> Engine:
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.lr, fused=True)
    return make_engine(objective, optimizer, world, zero_stage=config.zero.stage)


def untrained_record(config: ChoosesRecommender, dataset: Dataset, store: FeatureStore | None) -> RunRecord:
    """Describe what a run will start from.

    Args:
        config: Settings.
        dataset: Packed data set.
        store: What `open_store` gave.

    Returns:
        The record, of stage 0.
    """
    features = encoder = None
    if store is not None:
        made = store.manifest
        features = {"path": str(store.folder.resolve()), "fingerprint": made.fingerprint}
        if made.encoder is not None:
            encoder = {**made.encoder_settings, "fingerprint": made.encoder}
    return RunRecord(
        stage=0,
        recommender=config.recommender,
        modalities=list(modalities_of(config, store)),
        hyperparameters=asdict(config.model),
        data={"path": str(dataset.folder.resolve()), "fingerprint": dataset.fingerprint},
        features=features,
        graph_features=features,
        encoder=encoder,
    )


def make_record(stage: Stage1, mlflow_run: str | None, kept_epoch: int) -> RunRecord:
    """Describe where a run came from.

    Args:
        stage: Stage 1.
        mlflow_run: MLflow run id.
        kept_epoch: Epoch whose weights were kept.

    Returns:
        The record.
    """
    return replace(
        untrained_record(stage.config, stage.dataset, stage.store),
        stage=1,
        mlflow_run=mlflow_run,
        train_features=stage.config.train_features,
        mask_validation_at_test=stage.config.mask_validation_at_test,
        parameters=parameter_counts(stage.objective),
        kept_epoch=kept_epoch,
    )


def parameter_counts(objective: Objective) -> dict[str, int]:
    """Count parameters by where they lie; feature tables count as trainable only where they are trained.

    Args:
        objective: The recommender and its features.

    Returns:
        `ids` (ID tables), `rest` (maps, gates and all else), `feature_tables` (trained or not), and `trainable`, which is
        what an optimiser moves.
    """
    modules = objective.recommender.modules()
    ids = sum(module.weight.numel() for module in modules if isinstance(module, nn.Embedding))
    own = sum(parameter.numel() for parameter in objective.recommender.parameters())
    trainable = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    tables = sum(table.numel() for table in objective.features.values())
    return {"ids": ids, "rest": own - ids, "feature_tables": tables, "trainable": trainable}


def modalities_of(config: ChoosesRecommender, store: FeatureStore | None) -> tuple[str, ...]:
    """List the modalities that a run reads; none for ID-only recommenders.

    Args:
        config: Settings.
        store: What `open_store` gave.

    Returns:
        Names of modalities.

    Raises:
        UserError: The features lack a modality that was asked for.
    """
    if store is None:
        return ()
    there = tuple(sorted(store.manifest.widths))
    asked = {"auto": there, "both": ("image", "text")}.get(config.modalities, (config.modalities,))
    if not set(asked) <= set(there):
        raise UserError(
            f"modalities: got {config.modalities}, but {store.folder} has {' and '.join(there)} alone; give --modalities "
            f"{there[0] if len(there) == 1 else 'auto'}"
        )
    return asked
