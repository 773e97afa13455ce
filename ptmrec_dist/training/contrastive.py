"""Fine-tune an encoder on a catalogue's own pairs of image and text (PTMRec eq. 2).

ptmrec contrastive --shards shards/movies --encoder.model clip --out encoders/movies          # one process
deepspeed --num_gpus 2 launchers/contrastive.py --shards shards/movies --encoder.model clip --out encoders/movies
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ptmrec_dist.config import ContrastiveConfig, method_entry
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemBatch, ItemStream
from ptmrec_dist.distributed import World, barrier, join_world
from ptmrec_dist.distributed.engine import Engine, make_engine
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.features import check_image_size, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import TUNED_FILE, load_backbone, save_backbone
from ptmrec_dist.encoders.sources.open_clip import CONFIG_FILE
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import write_atomically
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.checkpoint import Checkpoints, LoopState, save_engine, writing
from ptmrec_dist.training.image_text import ImageTextPairs
from ptmrec_dist.training.loop import resume_from, run_epochs
from ptmrec_dist.training.meter import Meter
from ptmrec_dist.training.monitor import Monitor
from ptmrec_dist.training.optim import schedule_of, skip_to, steps_before
from ptmrec_dist.training.runs import RunFolder, flatten, plain_settings, save_tensors

LINEAGE_FILE = "lineage.json"
"""What a fine-tuned encoder comes from; once it is complete, also how it went."""


@dataclass
class FineTuning:
    """Everything that a step of contrastive fine-tuning touches."""

    config: ContrastiveConfig
    """Settings."""
    encoder: Encoder
    """What is tuned."""
    engine: Engine
    """The engine around `ImageTextPairs`."""
    stream: ItemStream
    """Where pairs come from."""
    schedule: LambdaLR
    """Learning rates of the optimiser inside the engine."""
    world: World
    """This rank and its peers."""
    monitor: Monitor
    """Reads the losses, and whether to stop."""
    watch: Heartbeat
    """Knows where the other ranks are."""
    lineage: dict[str, Any]
    """What the encoder comes from, and how many parameters are tuned."""
    meter: Meter = field(default_factory=Meter)
    """Time, items and memory of the epochs."""


@exclusive_out
def fine_tune(config: ContrastiveConfig) -> None:
    """Fine-tune an encoder on a catalogue's own pairs and write it as a folder (`ptmrec contrastive`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Shards without content, an encoder that cannot be loaded or cannot take the method, a folder of something
            else or of other settings, a batch that ranks cannot share, a loss that is not finite.
        Fault: A rank was lost, items could not be read, the disk is full.
    """
    dataset = Dataset(config.shards)
    require_content(dataset, "image", "text")
    encoder = _encoder(config)
    if not hasattr(encoder.model, "logit_scale"):
        raise UserError(
            "encoder: separate models of images and texts have no common space to be compared in; contrastive takes an "
            "image-text model, --encoder.model"
        )
    if encoder.backbone.tuned:
        raise UserError(
            f"encoder.model: {config.encoder.model} carries what was tuned before ({encoder.backbone.tuned[0].name}); start "
            "from the encoder that it was made of"
        )
    inputs = {"shards": dataset.fingerprint, "encoder": encoder.backbone.fingerprint}
    run = RunFolder(config.out, config, inputs, last=CONFIG_FILE)
    if run.is_complete:
        print(f"{config.out} is complete; nothing to do")
        return
    check_image_size(dataset, encoder, config.strict)
    encoder.tune(config.tuning.method, config.tuning.settings, torch.Generator().manual_seed(config.seed))
    tuning = _prepare(config, dataset, encoder, join_world(config.device, config.timeout))
    if tuning.world.is_first:
        run.start()
        write_atomically(config.out / LINEAGE_FILE, json.dumps(tuning.lineage, indent=1))
    barrier()
    checkpoints = Checkpoints(config.out / "checkpoints", config.keep_checkpoints)
    loop = _resume(tuning, checkpoints)
    tracking = Tracker.start(
        config.tracking,
        name=config.out.name,
        params=flatten(plain_settings(config)),
        tags={"stage": "contrastive", "data": dataset.fingerprint},
        run_id=run.mlflow_run,
        active=tuning.world.is_first,
    )
    with tracking as tracker, tuning.watch:
        if tuning.world.is_first:
            run.mlflow_run = tracker.run_id
        task = _Task(tuning, loop, tracker)
        if run_epochs(task, tuning, loop, checkpoints, epochs=config.epochs, checkpoint_every=config.checkpoint_every):
            _finish(tuning, loop, run, tracker)
            if tuning.world.is_first:
                checkpoints.clear()
        else:
            tracker.interrupted()
    barrier()


def train_step(tuning: FineTuning, batch: ItemBatch, step: int) -> None:
    """Do one step of the optimiser on the pairs of all ranks.

    Collective: every rank must call this, also one that has no pairs left.

    Args:
        tuning: Model, engine, settings.
        batch: This rank's pairs.
        step: Number of the step since the start.

    Raises:
        UserError: The loss or a gradient was not finite on some rank; the update was not made.
    """
    pairs = batch.to(tuning.world.device)
    share = tuning.engine(cast(Tensor, pairs.images), cast(Tensor, pairs.texts))  # both towers have readers
    tuning.monitor.note(step, {"loss": share}, 1.0)
    tuning.engine.backward(share, last=True)
    tuning.monitor.update(tuning.engine)
    tuning.schedule.step()


@dataclass(frozen=True)
class _Task:
    """Fine-tuning as the loop sees it."""

    tuning: FineTuning
    loop: LoopState
    tracker: Tracker

    def start_epoch(self, epoch: int) -> int:
        self.tuning.engine.module.train()
        return self.tuning.stream.steps(epoch)

    def windows(self, epoch: int, skip: int) -> Iterator[ItemBatch]:
        return self.tuning.stream.epoch(epoch, skip)

    def step(self, window: ItemBatch, number: int) -> int:
        train_step(self.tuning, window, number)
        return len(window.items)

    def end_epoch(self) -> None:
        steps = self.tuning.stream.steps(self.loop.epoch - 1)
        line = {"epoch": self.loop.epoch, "loss": self.loop.sums["loss"] / steps}
        self.loop.history.append(line)
        self.tracker.metrics({"loss": line["loss"]}, self.loop.epoch)

    def write(self, folder: Path) -> None:
        save_engine(self.tuning.engine, folder)


def _prepare(config: ContrastiveConfig, dataset: Dataset, encoder: Encoder, world: World) -> FineTuning:
    if config.batch_size % world.size:
        raise UserError(f"batch_size: got {config.batch_size}, expected a multiple of the {world.size} ranks")
    stream = _pairs(config, dataset, encoder, world)
    lineage = {
        "data": dataset.fingerprint,
        "encoder": encoder.backbone.fingerprint,
        "parameters": {"encoder": encoder.num_tuned},  # now: ZeRO-3 leaves a rank a part of each parameter
    }
    pairs = ImageTextPairs(encoder.to(world.device), world)
    tuned = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=config.encoder_lr, weight_decay=config.optim.weight_decay)
    engine = make_engine(pairs, optimizer, world, zero_stage=config.zero.stage, grad_clip=config.optim.grad_clip)
    every = config.check_every or (1 if world.device.type == "cpu" else 10)
    return FineTuning(
        config=config,
        encoder=encoder,
        engine=engine,
        stream=stream,
        schedule=schedule_of(optimizer, config.optim.schedule, steps_before(stream, config.epochs)),
        world=world,
        monitor=Monitor(world, every, remedy="lower --optim.encoder_lr"),
        watch=Heartbeat(world, config.timeout),
        lineage=lineage,
    )


def _resume(tuning: FineTuning, checkpoints: Checkpoints) -> LoopState:
    """Resume from the newest complete checkpoint; the learning rate follows from the epoch and the step."""
    begin = LoopState(world_size=tuning.world.size, layout=tuning.stream.layout)
    _, loop = resume_from(tuning.engine, checkpoints, tuning.world, begin)
    skip_to(tuning.schedule, steps_before(tuning.stream, loop.epoch) + loop.step)
    return loop


def _finish(tuning: FineTuning, loop: LoopState, run: RunFolder, tracker: Tracker) -> None:
    """Write the encoder, its configuration last: it marks the folder as complete."""
    config = tuning.config
    with tuning.engine.whole():
        state = {name: value.cpu().clone() for name, value in tuning.encoder.tuned_state().items()}
    efficiency = tuning.meter.summary(tuning.world)
    losses = [line["loss"] for line in loop.history]
    fresh = config.out / ".encoder.new"
    with writing(tuning.world, f"the encoder to {config.out}", "the last checkpoint is still there", fresh):
        if tuning.world.is_first:
            run.write_history(loop.history)
            run.write_efficiency(efficiency)
            lineage = tuning.lineage | {"settings": plain_settings(config), "loss": losses}
            write_atomically(config.out / LINEAGE_FILE, json.dumps(lineage, indent=1))
            _write(config, fresh, state, tuning.encoder.description)
    counted = {"parameters/encoder": float(tuning.lineage["parameters"]["encoder"])}
    tracker.metrics(efficiency | counted, loop.epoch)
    if tuning.world.is_first:
        written = load_backbone(replace(config.encoder, model=str(config.out), pretrained=None))
        print(f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
        print(f"{tuning.lineage['parameters']['encoder']:,} parameters tuned; {config.out}, ", end="")
        print(f"fingerprint {written.fingerprint[:12]}")


def _encoder(config: ContrastiveConfig) -> Encoder:
    both = ("image", "text")
    return Encoder(load_backbone(config.encoder), both, config.precision, config.tuning.gradient_checkpointing)


def _pairs(config: ContrastiveConfig, dataset: Dataset, encoder: Encoder, world: World) -> ItemStream:
    wanted = dataset.has("image") & dataset.has("text")
    for part in ("cold_validation", "cold_test"):
        wanted[dataset.cold_items(part)] = False
    local = config.batch_size // world.size
    reader = reader_of(encoder)
    return ItemStream(
        dataset, world.rank, world.size, local, reader, wanted=wanted, seed=config.seed, workers=config.workers
    )


def _write(config: ContrastiveConfig, fresh: Path, state: dict[str, Tensor], description: dict[str, str]) -> None:
    """Write the encoder: what open_clip has a place for in its weights, prompts and adapters beside them."""
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    fresh.mkdir()
    save_tensors(fresh / TUNED_FILE, state, description)
    encoder = _encoder(config)
    if method_entry(config.tuning.method).mergeable:
        encoder.load_tuned(fresh / TUNED_FILE)
        (fresh / TUNED_FILE).unlink()
        encoder.merge()
    save_backbone(encoder.backbone, fresh)
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        os.replace(path, config.out / path.name)
    fresh.rmdir()
