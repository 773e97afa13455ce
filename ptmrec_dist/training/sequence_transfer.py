"""Stage 2 from a run of a sequence recommender: on users and their sequences, with a recommender by IDs as the teacher.

ptmrec stage1 --shards shards/movies --recommender sasrec --out runs/ids
ptmrec stage1 --shards shards/movies --features features/movies --recommender morec --out runs/features
ptmrec stage2 --stage1 runs/features --teacher_run runs/ids --out runs/tuned
"""

from dataclasses import replace
from typing import cast

import torch

from ptmrec_dist.config import ReadsRun, Stage2Config
from ptmrec_dist.config.common import require
from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.end_to_end import files_read_by, live_inputs
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.objectives.next_item_transfer import NextItemTeacher, NextItemTransfer
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.sequence_batches import SequenceBatches, require_negatives
from ptmrec_dist.training.session import Report, report_complete
from ptmrec_dist.training.tune import check_start, train_both


def tune_on_sequences(config: Stage2Config, start: FinishedRun, report: Report | None = None) -> None:
    """Tune the encoder of a finished run of a sequence recommender, and write the run folder.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: The run.
        report: As for `stage2.tune_from`.

    Raises:
        UserError: Settings that are of other recommenders; a teacher that is none of the next item, of other data, of another
            width or that reads less; a recommender whose states score no modality alone; batches without negatives; all that
            `check_start` refuses.
    """
    _refuse_settings_of_others(config, start)
    recommender = cast(SequenceRecommender, start.recommender)
    sequences = TrainingSequences(start.dataset, recommender.history_length)
    teacher = start if config.teacher_run is None else _teacher_of(config, start)
    _refuse_other_widths(config, recommender, start, teacher)
    if teacher is not start:
        reference = reference_to(teacher.folder, teacher.record.fingerprint)
        start = replace(start, record=replace(start.record, teacher=reference))
    encoder = check_start(config, start)
    run = RunFolder(config.out, config, start.record.inputs)
    if report_complete(run, config.tracking):
        return
    world = join_world(config.device, config.timeout)
    require_negatives(NextItemConfig(), sequences, config.batch_size, world)
    torch.manual_seed(config.seed)
    objective = NextItemTransfer(
        live_inputs(start, encoder, sequences, world),
        config.seed,
        teacher=_taught_by(teacher, world),
        weight=config.kt_weight,
        temperature=config.temperature,
        teachers_states=config.user_states == "teacher",
    )
    files = files_read_by(encoder, start.dataset, config)
    batches = SequenceBatches(sequences, config.batch_size, world, files=files, workers=config.workers)
    train_both(config, run, start, objective, batches, report)


def _taught_by(run: FinishedRun, world: World) -> NextItemTeacher:
    features = {name: table.to(world.device) for name, table in run.features.items()}
    return NextItemTeacher(cast(SequenceRecommender, run.recommender).to(world.device), features)


def _refuse_settings_of_others(config: Stage2Config, start: FinishedRun) -> None:
    """Refuse settings that only recommenders read whose users are rows of a table."""
    config.require_sequences(start.record.recommender)
    other = f"with {start.record.recommender}: another sequence recommender is named by --teacher_run"
    require(config.teacher == "stage1", "teacher", config.teacher, f"stage1 {other}")
    require(config.teacher_scores == "whole", "teacher_scores", config.teacher_scores, f"whole {other}")
    keep = f"keep with {start.record.recommender}, whose known positives are always left out"
    require(config.known_positives == "keep", "known_positives", config.known_positives, keep)


def _teacher_of(config: Stage2Config, start: FinishedRun) -> FinishedRun:
    """The run that teaches, if it fits."""
    folder = config.teacher_run
    assert folder is not None
    teacher = load_run(folder, ReadsRun(shards=config.shards), name="teacher_run")
    read = start.recommender.history_length
    found, expected = teacher.dataset.fingerprint[:12], start.dataset.fingerprint[:12]
    require(found == expected, "teacher_run", f"a run on {found}", f"one on the data set of {start.folder}, {expected}")
    model = teacher.recommender
    kind = "one of a sequence recommender such as sasrec"
    require(isinstance(model, SequenceRecommender), "teacher_run", f"a run of {teacher.record.recommender}", kind)
    length = f"{read} or more, as many as {start.folder} reads; train it with --model.length {read}"
    require(model.history_length >= read, "teacher_run", f"a history of {model.history_length} items", length)
    return teacher


def _refuse_other_widths(
    config: Stage2Config, recommender: SequenceRecommender, start: FinishedRun, teacher: FinishedRun
) -> None:
    """A recommender without vectors of a modality alone, or of another width than the teacher's states that score them."""
    modal = recommender.modal_vectors({name: table[:1] for name, table in start.features.items()})
    width = next(iter(modal.values())).shape[1]
    model, first = cast(SequenceRecommender, teacher.recommender), torch.zeros(1, dtype=torch.int64)
    vectors = model.item_vectors({name: table[:1] for name, table in teacher.features.items()}, first)
    same = model.candidates(vectors).shape[1] == width
    expected = f"modal, or a teacher of the width of {start.folder}, {width}"
    require(config.user_states == "modal" or same, "user_states", config.user_states, expected)
