"""Train an encoder with a sequence recommender, on users and their sequences: MoRec and PMMRec as published."""

from dataclasses import replace

import torch

from ptmrec_dist.config import JointConfig, TunesEncoder
from ptmrec_dist.config.common import require
from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.finished_run import FinishedRun, untrained_recommender
from ptmrec_dist.training.objectives.live_sequence import LiveInputs, LiveNextItem
from ptmrec_dist.training.parts import take_over, take_over_prompts, with_source
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.sequence_batches import SequenceBatches, require_negatives
from ptmrec_dist.training.session import report_complete
from ptmrec_dist.training.tune import check_start, reads_tokens, train_both


def train_on_sequences(config: JointConfig, start: FinishedRun) -> None:
    """Train encoder and recommender together, and write the run folder.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: An untrained sequence recommender, which gradients of features reach.

    Raises:
        UserError: Interactions without times; batches without negatives; an encoder without tokens, where they are read; parts
            of another run that do not fit; all that `check_start` refuses; a run folder of other settings.
    """
    sequences = TrainingSequences(start.dataset, start.recommender.history_length, config.sequences == "latest")
    record = with_source(config, start.record)
    stale = record.inputs.get("encoder") != start.record.inputs.get("encoder")
    start = replace(start, record=record)
    encoder = check_start(config, start, stale)
    world = join_world(config.device, config.timeout)
    require_negatives(config, sequences, config.batch_size, world)
    start = _with_tokens(config, start, encoder)
    taken = _take_over(config, _recommender_of(start), encoder)
    run = RunFolder(config.out, config, start.record.inputs)
    if report_complete(run, config.tracking):
        return
    if taken and world.is_first:
        print(taken)
    objective = LiveNextItem(live_inputs(start, encoder, sequences, world), config, config.seed)
    files = files_read_by(encoder, start.dataset, config)
    batches = SequenceBatches(sequences, config.batch_size, world, config.negatives, files, config.workers)
    train_both(config, run, start, objective, batches)


def _take_over(config: JointConfig, recommender: SequenceRecommender, encoder: Encoder | None) -> str:
    """Take over what the transfer names, and say what."""
    if config.transfer == "prompts":
        assert encoder is not None  # the settings ask for prompts
        return take_over_prompts(config, encoder)
    if config.transfer_from is None:
        return ""
    taken = take_over(config, recommender)
    if config.pretraining == "auto" and isinstance(config.model, PMMRecConfig):
        taken += "; the losses of pre-training are off (--pretraining on keeps them)"
    return taken


def _with_tokens(config: JointConfig, start: FinishedRun, encoder: Encoder | None) -> FinishedRun:
    """Rebuild a recommender that reads tokens for their widths, without the stored features, which have others."""
    if encoder is None or not reads_tokens(config, start.recommender):
        return start
    refit = "false: what this recommender reads is made by its own fusion, which a refit would not train"
    require(not config.refit, "refit", config.refit, refit)
    widths = {f"{modality}_width": width for modality, width in encoder.token_widths().items()}
    record = replace(start.record, hyperparameters=start.record.hyperparameters | widths)
    torch.manual_seed(config.seed)
    recommender = untrained_recommender(record, start.dataset, start.folder)
    return replace(start, record=record, features={}, recommender=recommender)


def live_inputs(start: FinishedRun, encoder: Encoder | None, sequences: TrainingSequences, world: World) -> LiveInputs:
    """Move what `LiveNextItem` takes to the device.

    Args:
        start: A sequence recommender with its features.
        encoder: The encoder, with what is tuned; None keeps all features frozen.
        sequences: What is trained on.
        world: This rank and its peers.

    Returns:
        The inputs.
    """
    dataset, device = start.dataset, world.device
    return LiveInputs(
        encoder=None if encoder is None else encoder.to(device),
        recommender=_recommender_of(start).to(device),
        features={modality: table.to(device) for modality, table in start.features.items()},
        has={modality: torch.from_numpy(dataset.has(modality)).to(device) for modality in start.record.modalities},
        sequences=sequences,
        world=world,
    )


def files_read_by(encoder: Encoder | None, dataset: Dataset, config: TunesEncoder) -> ItemFiles | None:
    """Open the images and texts that an encoder reads.

    Args:
        encoder: The encoder; None where all features stay frozen.
        dataset: The packed data set.
        config: Settings.

    Returns:
        The files; None without an encoder.
    """
    if encoder is None:
        return None
    return ItemFiles(dataset, reader_of(encoder), config.max_damaged, config.workers)


def _recommender_of(start: FinishedRun) -> SequenceRecommender:
    assert isinstance(start.recommender, SequenceRecommender)
    return start.recommender
