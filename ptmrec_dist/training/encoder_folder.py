"""The folder that contrastive training leaves: an encoder that `--encoder.model` takes, and how it was made."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrec_dist.config import ContrastiveConfig, EncoderConfig, method_entry, plain_settings
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import TUNED_FILE, load_backbone, save_backbone
from ptmrec_dist.evaluation.retrieval import CUTOFF
from ptmrec_dist.files import write_atomically
from ptmrec_dist.training.pair_retrieval import own_pairs_found
from ptmrec_dist.training.run_folder import UNFINISHED_ENCODER
from ptmrec_dist.training.trainer import Trainer

LINEAGE_FILE = "lineage.json"
"""What a fine-tuned encoder comes from; once it is complete, also how it went."""


def untuned_encoder(config: ContrastiveConfig, source: Backbone) -> Encoder:
    """Make the encoder that is trained, before anything is attached to it.

    Args:
        config: Settings.
        source: Encoder to start from; separate ones get fresh projections.

    Returns:
        The encoder.
    """
    backbone = source.projected(config.projection, torch.Generator().manual_seed(config.seed))
    encoder = Encoder(backbone, ("image", "text"), config.precision, config.tuning.gradient_checkpointing)
    encoder.sort_by_length = config.zero.stage < 3
    return encoder


def write_encoder(
    config: ContrastiveConfig,
    trainer: Trainer,
    encoder: Encoder,
    lineage: dict[str, Any],
    before: dict[str, float],
    held_out: ItemStream,
) -> None:
    """Write the encoder, its configuration last, which marks the folder as complete, and print how it went.

    Collective: every rank must call this.

    Args:
        config: Settings.
        trainer: What trained it.
        encoder: The encoder.
        lineage: What it comes from.
        before: Retrieval of held-out pairs before training; empty without any.
        held_out: These pairs.
    """
    session, world = trainer.session, trainer.world
    with trainer.engine.whole():
        # First the state: under ZeRO-3 a forward pass divides its parameters again.
        state = {name: value.cpu().clone() for name, value in encoder.tuned_state().items()}
        retrieval = {"before": before, "after": own_pairs_found(encoder, held_out, session)} if before else {}
    logged = session.write_efficiency()
    for when, found in retrieval.items():
        logged |= {f"retrieval_{when}/{name}": value for name, value in found.items()}
    session.log_result(logged, lineage["parameters"], trainer.state.epoch)
    losses = [line["loss"] for line in trainer.state.history]
    fresh = config.out / UNFINISHED_ENCODER
    with writing(world, f"the encoder to {config.out}", "the last checkpoint is still there", fresh):
        if world.is_first:
            complete = lineage | {"retrieval": retrieval, "settings": plain_settings(config), "loss": losses}
            write_atomically(config.out / LINEAGE_FILE, json.dumps(complete, indent=1))
            _write_files(config, fresh, state, encoder.description)
    session.end()
    if world.is_first:
        _print_result(config, lineage["parameters"]["encoder"], retrieval, losses)


def _print_result(
    config: ContrastiveConfig, tuned: int, retrieval: dict[str, dict[str, float]], losses: list[float]
) -> None:
    for when, found in retrieval.items():
        print(
            f"own pair among the {CUTOFF} nearest of {found['items']:.0f} held-out items {when} training: text of an image "
            f"{found['image_to_text']:.3f}, image of a text {found['text_to_image']:.3f}, chance "
            f"{min(1.0, CUTOFF / found['items']):.3f}"
        )
    print(f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
    written = load_backbone(EncoderConfig(model=str(config.out)))
    print(f"{tuned:,} parameters tuned; {config.out}, fingerprint {written.fingerprint[:12]}")


def _write_files(config: ContrastiveConfig, fresh: Path, state: dict[str, Tensor], description: dict[str, str]) -> None:
    """Write the encoder: what its own parameters can hold in its weights, prompts and adapters beside them."""
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    fresh.mkdir()
    save_tensors(fresh / TUNED_FILE, state, description)
    encoder = untuned_encoder(config, load_backbone(config.encoder))
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
