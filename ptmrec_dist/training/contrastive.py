"""Fine-tune an encoder on a catalogue's own pairs of image and text (PTMRec eq. 2).

ptmrec contrastive --shards shards/movies --encoder.model clip --out encoders/movies          # one process
ptmrec contrastive --shards shards/movies --encoder.image timm:NAME --encoder.text hf:NAME --out encoders/movies
deepspeed --num_gpus 2 launchers/contrastive.py --shards shards/movies --encoder.model clip --out encoders/movies
"""

import json

import torch

from ptmrec_dist.config import ContrastiveConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import check_image_size, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import write_atomically
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.training.batches import StreamedBatches, item_stream, rows_per_rank
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.encoder_folder import LINEAGE_FILE, untuned_encoder, write_encoder
from ptmrec_dist.training.frozen_states import store_frozen_states
from ptmrec_dist.training.objectives.base import Objective
from ptmrec_dist.training.objectives.contrastive import ImageTextPairs
from ptmrec_dist.training.objectives.unified import UnifiedPairs
from ptmrec_dist.training.optim import adamw
from ptmrec_dist.training.pair_retrieval import held_out_pairs, own_pairs_found
from ptmrec_dist.training.plan import tuning_plan
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.session import open_session, report_complete
from ptmrec_dist.training.trainer import Trainer


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
    if report_complete(run, config.tracking):
        return
    check_image_size(dataset, encoder, config.strict)
    _tune(config, encoder)
    world = join_world(config.device, config.timeout)
    if config.cuda_graphs:
        encoder.record(world.device)
    batches = _batches(config, dataset, encoder, world)
    parameters = {"encoder": encoder.num_tuned}  # now: ZeRO-3 leaves a rank a part of each parameter
    lineage = {"data": dataset.fingerprint, "encoder": fingerprint, "parameters": parameters}
    with open_session(config, run, world, {"stage": "contrastive", "data": dataset.fingerprint}) as session:
        if world.is_first:
            write_atomically(config.out / LINEAGE_FILE, json.dumps(lineage, indent=1))
        trained = _objective(config, encoder.to(world.device), world)
        store_frozen_states(config, session, dataset, encoder)
        held_out = held_out_pairs(config, dataset, encoder, world)
        before = own_pairs_found(encoder, held_out, session)
        optimizer, stopping = _optimizer(config, trained, encoder), EarlyStopping(patience=config.epochs)
        trainer = Trainer(session, trained, optimizer, batches, tuning_plan(config), stopping)
        if trainer.fit():
            write_encoder(config, trainer, encoder, lineage, before, held_out)


def _start(config: ContrastiveConfig) -> tuple[str, Encoder]:
    """Fingerprint of the encoder to start from, and that encoder with what the objectives need."""
    source = load_backbone(config.encoder)
    if len(source.modalities) < 2:
        raise UserError(
            f"encoder: got an encoder of {source.modalities[0]}s alone, but contrastive compares images with texts; give both "
            "--encoder.image and --encoder.text, or --encoder.model"
        )
    encoder = untuned_encoder(config, source)
    for objective in config.objectives:
        encoder.backbone.heads(objective)  # refuses what the encoder cannot be trained on
    if encoder.backbone.tuned:
        raise UserError(
            f"encoder.model: {config.encoder.model} carries what was tuned before ({encoder.backbone.tuned[0].name}); start "
            "from the encoder that it was made of"
        )
    return source.fingerprint, encoder


def _tune(config: ContrastiveConfig, encoder: Encoder) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    encoder.tune(config.tuning.method, config.tuning.settings, generator, config.objectives)
    if not encoder.num_tuned:
        raise UserError(
            f"tuning.method: got {config.tuning.method!r}, expected a method that trains something; none is for separate "
            "encoders, whose new projections are trained in any case"
        )


def _objective(config: ContrastiveConfig, encoder: Encoder, world: World) -> Objective:
    if config.objectives == ("itc",):
        return ImageTextPairs(encoder, world)
    return UnifiedPairs(encoder, config.objectives, config.mask_rate, config.seed, world)


def _optimizer(config: ContrastiveConfig, trained: Objective, encoder: Encoder) -> torch.optim.AdamW:
    return adamw(
        trained,
        config.optim.weight_decay,
        (encoder.parameters(), config.encoder_lr),
        (encoder.backbone.projections, config.projection_lr),  # these are new, the towers were pretrained
    )


def _batches(config: ContrastiveConfig, dataset: Dataset, encoder: Encoder, world: World) -> StreamedBatches:
    """Items with an image and a text that are not held out."""
    wanted = dataset.has("image") & dataset.has("text")
    for part in ("cold_validation", "cold_test"):
        wanted[dataset.cold_items(part)] = False
    if wanted.sum() < 2:
        raise UserError(
            f"shards: {dataset.folder} has {wanted.sum()} items with an image and a text that are not held out, expected 2 or "
            "more; pack more items"
        )
    rows = rows_per_rank(config.batch_size, world)
    stream = item_stream(config, dataset, reader_of(encoder), world, rows, wanted=wanted, seed=config.seed)
    return StreamedBatches(stream, layout=f"{dataset.manifest.layout} on {world.size} ranks")
