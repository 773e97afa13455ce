"""What stage 2 is put together from before its first step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from ptmrec_dist.config import Stage2Config, TrainsBoth
from ptmrec_dist.data.pairs import InteractionMajor, ItemMajor, TrainStream
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.stream import ItemStream, Reader
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.engine import Engine, make_engine
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.features import check_image_size, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import load_backbone_of
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import recent_items
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.training.loaded import LoadedRun, untrained_recommender
from ptmrec_dist.training.meter import Meter
from ptmrec_dist.training.monitor import Monitor
from ptmrec_dist.training.negatives import KnownPositives
from ptmrec_dist.training.optim import parameter_groups, schedule_of, steps_before
from ptmrec_dist.training.records import require_encoder
from ptmrec_dist.training.tuner import Transfer, Tuner

Report = Callable[[dict[str, Any]], None]
"""Takes an evaluation: `epoch`, `loss/…` and `PART.METRIC` to value."""


@dataclass
class Stage2:
    """Everything that a step of stage 2 touches."""

    config: TrainsBoth
    """Settings."""
    start: LoadedRun
    """The run of stage 1."""
    tuner: Tuner
    """Encoder and recommender."""
    engine: Engine
    """The engine around the tuner."""
    stream: TrainStream
    """Where steps come from."""
    schedule: LambdaLR
    """Learning rates of the optimiser inside the engine."""
    refresh: ItemStream | None
    """All items, to refresh their features; None where the encoder is frozen."""
    world: World
    """This rank and its peers."""
    monitor: Monitor
    """Reads the losses, and whether to stop."""
    watch: Heartbeat
    """Knows where the other ranks are."""
    parameters: dict[str, int]
    """Trainable parameters: `encoder`, `recommender` and, of both, `trainable`."""
    fitted: Recommender | None = None
    """Without knowledge transfer, or under ZeRO-3: a second recommender, which is evaluated; see `with_fitted_maps`."""
    report: Report = lambda line: None
    """Told of each evaluation, on every rank."""
    meter: Meter = field(default_factory=Meter)
    """Time, items and memory of the epochs."""
    features_written: bool = False
    """Whether the features as they stand lie beside the checkpoints."""


def check_start(config: TrainsBoth, start: LoadedRun) -> Encoder | None:
    """Check that stage 2 can start from a run, and load the encoder that its features came from.

    Args:
        config: Settings.
        start: The run of stage 1.

    Returns:
        The encoder, ready to be tuned, or None where the features stay frozen.

    Raises:
        UserError: A run that is not of stage 1, is ID-only or trained its feature tables; another encoder; a method that
            it cannot take.
    """
    record = start.record
    if record.stage > 1:
        raise UserError(f"stage1: {start.folder} is a run of stage {record.stage}; expected one of `ptmrec stage1`")
    if not start.recommender.multimodal:
        raise UserError(
            f"recommender: {record.recommender} knows items by their IDs only, which no encoder changes; choose vbpr, freedom "
            "or another that reads features"
        )
    if record.encoder is None:
        raise UserError(
            f"stage1: the features of {start.folder} came from arrays, which no encoder gives; extract them by "
            "`ptmrec features --encoder.model` to tune one"
        )
    if record.train_features:
        raise UserError(
            "stage1: its feature tables were trained and no encoder gives them; train without --train_features"
        )
    require_content(start.dataset, *record.modalities)
    start.dataset.require("validation")
    if config.select_on not in ("auto", *start.dataset.parts):
        raise UserError(f"select_on: got {config.select_on}, but the split has {', '.join(start.dataset.parts)}")
    if config.tuning.method == "none":
        return None
    require_encoder(record, start.folder)
    backbone = load_backbone_of(record.encoder)
    encoder = Encoder(backbone, tuple(record.modalities), config.precision, config.tuning.gradient_checkpointing)
    check_image_size(start.dataset, encoder, config.strict)
    encoder.tune(config.tuning.method, config.tuning.settings, torch.Generator().manual_seed(config.seed))
    return encoder


def prepare(config: TrainsBoth, start: LoadedRun, encoder: Encoder | None, world: World) -> Stage2:
    """Put model, engine and streams together.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: The run of stage 1.
        encoder: What `check_start` gave.
        world: This rank and its peers.

    Returns:
        Stage 2, ready for its first step.

    Raises:
        UserError: A batch that cannot be divided over the ranks, or too few shards.
    """
    if config.batch_size % world.size:
        raise UserError(f"batch_size: got {config.batch_size}, expected a multiple of the {world.size} ranks")
    torch.manual_seed(config.seed)
    stream = _train_stream(config, start, encoder, world)
    refresh = None
    if encoder is not None:
        local = max(config.batch_size // world.size, 64)
        refresh = ItemStream(
            start.dataset,
            world.rank,
            world.size,
            local,
            reader_of(encoder),
            workers=config.workers,
            max_damaged=config.max_damaged,
        )
        encoder.to(world.device)
    tuner = Tuner(
        encoder,
        start.recommender.to(world.device),
        {modality: table.to(world.device) for modality, table in start.features.items()},
        KnownPositives(start.dataset.interactions("train"), start.dataset.num_items, world.device),
        _transfer_of(config),
        config.seed,
        rows=config.batch_size // world.size,
        has={modality: torch.from_numpy(start.dataset.has(modality)).to(world.device) for modality in start.features},
        recent=recent_items(start.recommender, start.dataset, ("train",), world.device),
    )
    optimizer = torch.optim.AdamW(parameter_groups(tuner, config), weight_decay=config.optim.weight_decay)
    schedule = schedule_of(optimizer, config.optim.schedule, steps_before(stream, config.epochs, config.accumulation))
    # Now: ZeRO-3 leaves a rank a part of each parameter.
    parameters = _parameter_counts(tuner)
    fitted = None
    if not tuner.transfer.weight or config.zero.stage == 3:
        fitted = untrained_recommender(start.record, start.dataset, start.folder).to(world.device)
    engine = make_engine(
        tuner,
        optimizer,
        world,
        zero_stage=config.zero.stage,
        accumulation=config.accumulation,
        grad_clip=config.optim.grad_clip,
    )
    every = config.check_every or (1 if world.device.type == "cpu" else 10)
    monitor, watch = Monitor(world, every), Heartbeat(world, config.timeout)
    return Stage2(config, start, tuner, engine, stream, schedule, refresh, world, monitor, watch, parameters, fitted)


def _transfer_of(config: TrainsBoth) -> Transfer:
    if not isinstance(config, Stage2Config):  # from scratch there is no teacher
        return Transfer(weight=0.0, temperature=1.0, live_teacher=False, id_only=False, mask_known=False)
    return Transfer(
        weight=config.kt_weight,
        temperature=config.temperature,
        live_teacher=config.teacher == "live",
        id_only=config.teacher_scores == "id",
        mask_known=config.known_positives == "mask",
    )


def _parameter_counts(tuner: Tuner) -> dict[str, int]:
    encoder = 0 if tuner.encoder is None else tuner.encoder.num_tuned
    recommender = sum(parameter.numel() for parameter in tuner.recommender.parameters() if parameter.requires_grad)
    return {"encoder": encoder, "recommender": recommender, "trainable": encoder + recommender}


def _train_stream(config: TrainsBoth, start: LoadedRun, encoder: Encoder | None, world: World) -> TrainStream:
    dataset, local = start.dataset, config.batch_size // world.size
    reader = Reader() if encoder is None else reader_of(encoder)
    train = dataset.interactions("train")
    if config.batching == "interaction":
        files = ItemFiles(dataset, reader, config.max_damaged)
        return InteractionMajor(files, train, world.rank, world.size, local, config.seed)
    wanted = np.bincount(train.items, minlength=dataset.num_items) > 0
    stream = ItemStream(
        dataset,
        world.rank,
        world.size,
        local,
        reader,
        wanted=wanted,
        seed=config.seed,
        workers=config.workers,
        max_damaged=config.max_damaged,
    )
    return ItemMajor(stream, train, dataset.num_items, config.users_per_item, config.seed)
