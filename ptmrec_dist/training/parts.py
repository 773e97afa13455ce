"""Transfer of parts of a run to other data (PMMRec, arXiv 2312.09602, section III-E), strictly: a part is taken over whole.

              text encoder   image encoder   fusion   user encoder   what is read and scored
    full      taken          taken           taken    taken          all modalities
    items     taken          taken           taken    new            all modalities
    user      public         public          new      taken          all modalities
    text      taken          -               -        taken          the text
    image     -              taken           -        taken          the image
    prompts   prompts taken  prompts taken   new      new            all modalities

A projection goes with its encoder, positions with the user encoder. Classifiers of pre-training are new. What is taken
over is trained on, the towers as the tuning method says. Prompts are a few kilobytes, and any run that tuned some in the same
encoder gives them, whatever its recommender (PTMRec): the encoder's own weights stay public and frozen.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import JointConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.saved_tuning import read_tuned
from ptmrec_dist.encoders.sources.loading import tuned_fingerprint
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE, RunRecord, read_record

PARTS = {
    "full": ("text", "image", "fusion", "user"),
    "items": ("text", "image", "fusion"),
    "user": ("user",),
    "text": ("text", "user"),
    "image": ("image", "user"),
}
"""Transfer to the parts that are taken over."""


def with_source(config: JointConfig, record: RunRecord) -> RunRecord:
    """Add the run that parts are taken from to the lineage, with its encoder where that is one of them.

    Args:
        config: Settings.
        record: Lineage of what the run starts from.

    Returns:
        The record; as it was without a transfer.

    Raises:
        UserError: No finished run, one of another recommender, or one that lacks a modality.
    """
    folder = config.transfer_from
    if folder is None:
        return record
    source = read_record(folder, name="transfer_from")
    reference = reference_to(folder, source.fingerprint)
    if config.transfer == "prompts":
        _refuse_other_encoder(folder, source, record)
        return replace(record, source=reference)
    if source.recommender != record.recommender:
        raise UserError(
            f"transfer_from: {folder} is a run of {source.recommender}, expected one of {record.recommender}; choose "
            f"--recommender {source.recommender}"
        )
    wanted = set(PARTS[config.transfer]) & set(record.modalities)
    if not wanted <= set(source.modalities):
        raise UserError(
            f"transfer_from: {folder} reads {' and '.join(source.modalities)} alone, but --transfer {config.transfer} takes "
            f"over {' and '.join(sorted(wanted))}; choose --transfer user, or another run"
        )
    return replace(record, source=reference, encoder=encoder_of_run(folder, source) if wanted else record.encoder)


def take_over(config: JointConfig, recommender: SequenceRecommender) -> str:
    """Overwrite the parts of a recommender that are taken from another run.

    Args:
        config: Settings, with a transfer.
        recommender: The recommender, freshly initialised.

    Returns:
        What was done, in a line.

    Raises:
        UserError: A recommender without parts, or a part of another shape.
    """
    folder = config.transfer_from
    assert folder is not None
    parts = PARTS[config.transfer]
    if not recommender.parts:
        raise UserError(
            f"transfer: got {config.transfer}, but {config.recommender} has no parts; choose morec or pmmrec"
        )
    state = recommender.state_dict()
    there = load_file(folder / RECOMMENDER_FILE)
    taken = {name for name in state if _part_of(recommender, name) in parts}
    expected = {name for name in there if _part_of(recommender, name) in parts}
    if len(recommender.modalities) == 1:  # what the other modality needs is discarded
        expected = {name for name in expected if _part_of(recommender, name) in (*recommender.modalities, "user")}
    _refuse_misfit(folder, {name: state[name] for name in taken}, {name: there[name] for name in expected})
    recommender.load_state_dict(state | {name: there[name] for name in taken})
    used = [part for part in parts if any(_part_of(recommender, name) == part for name in taken)]
    return (
        f"took over {len(taken)} of {len(state)} tensors of the recommender from {folder} ({', '.join(used)}); "
        f"{len(state) - len(taken)} are new"
    )


def take_over_prompts(config: JointConfig, encoder: Encoder) -> str:
    """Overwrite the prompts of an encoder by those of another run.

    Args:
        config: Settings, with the transfer `prompts`.
        encoder: The encoder, with new prompts.

    Returns:
        What was done, in a line.

    Raises:
        UserError: The run has no prompts, or others than the settings ask for.
    """
    folder = config.transfer_from
    assert folder is not None
    if not (folder / ENCODER_FILE).is_file():
        raise UserError(
            f"transfer_from: {folder} tuned nothing in its encoder; expected a run with --tuning.method prompt"
        )
    saved = read_tuned(folder / ENCODER_FILE)
    if (saved.method, saved.settings) != ("prompt", config.tuning.settings):
        raise UserError(
            f"transfer_from: {folder} has {saved.method} with {saved.settings}, expected prompt with "
            f"{config.tuning.settings}; give the run's --prompt.depth, --prompt.length and --prompt.towers"
        )
    prompts = encoder.tuned_state()
    saved.refuse_misfit(prompts, surplus_allowed=len(encoder.towers) < len(encoder.backbone.modalities))
    for name, value in prompts.items():
        value.copy_(saved.state[name])
    values = sum(value.numel() for value in prompts.values())
    frozen = sum(not parameter.requires_grad for parameter in encoder.parameters())
    return (
        f"took over {len(prompts)} of {len(saved.state)} tensors of prompts from {folder} ({values:,} values, "
        f"{values * 4 / 1024:.1f} KiB); the recommender is new, the encoder's own {frozen} tensors are frozen"
    )


def _refuse_other_encoder(folder: Path, source: RunRecord, record: RunRecord) -> None:
    """Prompts are of use in the encoder that they were tuned in alone."""
    found, expected = (made["fingerprint"] if made else "arrays" for made in (source.encoder, record.encoder))
    if found != expected:
        raise UserError(
            f"transfer_from: the encoder of {folder} is {found[:12]}, but the features came from {expected[:12]}; expected "
            "prompts of the same encoder"
        )


def _part_of(recommender: SequenceRecommender, name: str) -> str | None:
    return next((part for prefix, part in recommender.parts.items() if name.startswith(prefix)), None)


def _refuse_misfit(folder: Path, here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    for name in sorted(here.keys() | there.keys()):
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (here, there)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"transfer: {name} is {shapes[1]} in {folder} and {shapes[0]} here; expected the same: give the run's "
                "settings (--model.dim, --model.length, --tokens, ...) and an encoder of its widths"
            )


def encoder_of_run(folder: Path, source: RunRecord) -> dict[str, Any]:
    """Describe the encoder of a run as its weights are at the end.

    Args:
        folder: Run folder.
        source: Its lineage.

    Returns:
        Settings and fingerprint.

    Raises:
        UserError: The features of the run came from arrays.
    """
    if source.encoder is None:
        raise UserError(f"transfer_from: the features of {folder} came from arrays; expected a run with an encoder")
    tuned = folder / ENCODER_FILE
    if not tuned.is_file():
        return source.encoder
    fingerprint = tuned_fingerprint(source.encoder["fingerprint"], tuned)
    return {"model": str(folder.resolve()), "pretrained": None, "fingerprint": fingerprint}
