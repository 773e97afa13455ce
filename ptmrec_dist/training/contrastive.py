"""Fine-tune an encoder on a catalogue's own pairs of image and text (PTMRec eq. 2).

ptmrec contrastive --shards shards/movies --encoder.model clip --out encoders/movies          # one process
ptmrec contrastive --shards shards/movies --encoder.image timm:NAME --encoder.text hf:NAME --out encoders/movies
deepspeed --num_gpus 2 launchers/contrastive.py --shards shards/movies --encoder.model clip --out encoders/movies
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrec_dist.config import ContrastiveConfig, EncoderConfig, method_entry
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.features import check_image_size, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import TUNED_FILE, load_backbone, save_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.retrieval import CUTOFF
from ptmrec_dist.files import write_atomically
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.training.batches import StreamedBatches, item_stream, rows_per_rank
from ptmrec_dist.training.checkpoint import writing
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.objectives.base import Objective
from ptmrec_dist.training.objectives.contrastive import ImageTextPairs
from ptmrec_dist.training.objectives.unified import UnifiedPairs
from ptmrec_dist.training.optim import adamw
from ptmrec_dist.training.pair_retrieval import held_out_pairs, own_pairs_found
from ptmrec_dist.training.plan import tuning_plan
from ptmrec_dist.training.run_folder import RunFolder, plain_settings
from ptmrec_dist.training.session import open_session
from ptmrec_dist.training.trainer import Trainer

LINEAGE_FILE = "lineage.json"
"""What a fine-tuned encoder comes from; once it is complete, also how it went."""


@exclusive_out
def fine_tune(config: ContrastiveConfig) -> None:
    """Fine-tune an encoder on a catalogue's own pairs and write it as a folder (`ptmrec contrastive`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Shards without content, an encoder that cannot be loaded, lacks a tower, cannot take the method or has
            nothing to project, a method that trains nothing, a folder of something else or of other settings, a batch that
            cannot be divided over the ranks, a loss that is not finite.
        Fault: A rank was lost, items could not be read, the disk is full.
    """
    dataset = Dataset(config.shards)
    require_content(dataset, "image", "text")
    fingerprint, encoder = _start(config)
    inputs = {"shards": dataset.fingerprint, "encoder": fingerprint}
    run = RunFolder(config.out, config, inputs, last=encoder.backbone.config_file)
    if run.is_complete:
        print(f"{config.out} is complete; nothing to do")
        return
    check_image_size(dataset, encoder, config.strict)
    encoder.tune(
        config.tuning.method, config.tuning.settings, torch.Generator().manual_seed(config.seed), config.objectives
    )
    if not encoder.num_tuned:
        raise UserError(
            f"tuning.method: got {config.tuning.method!r}, expected a method that trains something; none is for separate "
            "encoders, whose new projections are trained in any case"
        )
    world = join_world(config.device, config.timeout)
    layout = f"{dataset.manifest.layout} on {world.size} ranks"
    batches = StreamedBatches(_pairs(config, dataset, encoder, world), layout=layout)
    lineage = {
        "data": dataset.fingerprint,
        "encoder": fingerprint,
        "parameters": {"encoder": encoder.num_tuned},  # now: ZeRO-3 leaves a rank a part of each parameter
    }
    with open_session(config, run, world, {"stage": "contrastive", "data": dataset.fingerprint}) as session:
        if world.is_first:
            write_atomically(config.out / LINEAGE_FILE, json.dumps(lineage, indent=1))
        trained = _objective(config, encoder.to(world.device), world)
        held_out = held_out_pairs(config, dataset, encoder, world)
        before = own_pairs_found(encoder, held_out, session)
        optimizer = adamw(
            config.optim.weight_decay,
            (encoder.parameters(), config.encoder_lr),
            (encoder.backbone.projections, config.projection_lr),  # these are new, the towers were pretrained
        )
        stopping = EarlyStopping(patience=config.epochs)
        trainer = Trainer(session, trained, optimizer, batches, tuning_plan(config), stopping)
        if trainer.fit():
            _finish(config, trainer, encoder, lineage, before, held_out)


def _start(config: ContrastiveConfig) -> tuple[str, Encoder]:
    """Fingerprint of the encoder to start from, and that encoder with what the objectives need."""
    source = load_backbone(config.encoder)
    if len(source.modalities) < 2:
        raise UserError(
            f"encoder: got an encoder of {source.modalities[0]}s alone, but contrastive compares images with texts; give both "
            "--encoder.image and --encoder.text, or --encoder.model"
        )
    encoder = _encoder(config, source)
    for objective in config.objectives:
        encoder.backbone.heads(objective)  # refuses what the encoder cannot be trained on
    if encoder.backbone.tuned:
        raise UserError(
            f"encoder.model: {config.encoder.model} carries what was tuned before ({encoder.backbone.tuned[0].name}); start "
            "from the encoder that it was made of"
        )
    return source.fingerprint, encoder


def _objective(config: ContrastiveConfig, encoder: Encoder, world: World) -> Objective:
    if config.objectives == ("itc",):
        return ImageTextPairs(encoder, world)
    return UnifiedPairs(encoder, config.objectives, config.mask_rate, config.seed, world)


def _finish(
    config: ContrastiveConfig,
    trainer: Trainer,
    encoder: Encoder,
    lineage: dict[str, Any],
    before: dict[str, float],
    held_out: ItemStream,
) -> None:
    """Write the encoder, its configuration last: it marks the folder as complete."""
    session, world = trainer.session, trainer.world
    with trainer.engine.whole():
        # First the state: under ZeRO-3 a forward pass divides its parameters again.
        state = {name: value.cpu().clone() for name, value in encoder.tuned_state().items()}
        retrieval = {"before": before, "after": own_pairs_found(encoder, held_out, session)} if before else {}
    logged = session.write_efficiency()
    for when, found in retrieval.items():
        logged |= {f"retrieval_{when}/{name}": value for name, value in found.items()}
    losses = [line["loss"] for line in trainer.state.history]
    fresh = config.out / ".encoder.new"
    with writing(world, f"the encoder to {config.out}", "the last checkpoint is still there", fresh):
        if world.is_first:
            complete = lineage | {"retrieval": retrieval, "settings": plain_settings(config), "loss": losses}
            write_atomically(config.out / LINEAGE_FILE, json.dumps(complete, indent=1))
            _write(config, fresh, state, encoder.description)
    session.log_finished(logged, lineage["parameters"], trainer.state.epoch)
    if world.is_first:
        written = load_backbone(EncoderConfig(model=str(config.out)))
        for when, found in retrieval.items():
            print(
                f"own pair among the {CUTOFF} nearest of {found['items']:.0f} held-out items {when} training: ", end=""
            )
            found_texts, found_images = found["image_to_text"], found["text_to_image"]
            print(f"text of an image {found_texts:.3f}, image of a text {found_images:.3f}", end="")
            print(f", chance {min(1.0, CUTOFF / found['items']):.3f}")
        print(f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
        print(f"{lineage['parameters']['encoder']:,} parameters tuned; {config.out}, ", end="")
        print(f"fingerprint {written.fingerprint[:12]}")


def _encoder(config: ContrastiveConfig, source: Backbone) -> Encoder:
    backbone = source.projected(config.projection, torch.Generator().manual_seed(config.seed))
    return Encoder(backbone, ("image", "text"), config.precision, config.tuning.gradient_checkpointing)


def _pairs(config: ContrastiveConfig, dataset: Dataset, encoder: Encoder, world: World) -> ItemStream:
    wanted = dataset.has("image") & dataset.has("text")
    for part in ("cold_validation", "cold_test"):
        wanted[dataset.cold_items(part)] = False
    if wanted.sum() < 2:
        raise UserError(
            f"shards: {dataset.folder} has {wanted.sum()} items with an image and a text that are not held out, expected 2 or "
            "more; pack more items"
        )
    rows = rows_per_rank(config.batch_size, world)
    return item_stream(config, dataset, reader_of(encoder), world, rows, wanted=wanted, seed=config.seed)


def _write(config: ContrastiveConfig, fresh: Path, state: dict[str, Tensor], description: dict[str, str]) -> None:
    """Write the encoder: what its own parameters can hold in its weights, prompts and adapters beside them."""
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    fresh.mkdir()
    save_tensors(fresh / TUNED_FILE, state, description)
    encoder = _encoder(config, load_backbone(config.encoder))
    if method_entry(config.tuning.method).mergeable:
        encoder.load_tuned(fresh / TUNED_FILE)
        (fresh / TUNED_FILE).unlink()
        encoder.merge()
    save_backbone(encoder.backbone, fresh)
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == encoder.backbone.config_file):
        if path.is_dir():  # likewise: a folder does not replace one that has files
            shutil.rmtree(config.out / path.name, ignore_errors=True)
        os.replace(path, config.out / path.name)
    fresh.rmdir()
