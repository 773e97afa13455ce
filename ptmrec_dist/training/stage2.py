"""Stage 2: tune the encoder, guided by what stage 1 learned about users (PTMRec sections 2.3 and 2.4).

deepspeed --num_gpus 8 launchers/stage2.py --stage1 runs/a --out runs/b        # GPUs, or ranks on a CPU
ptmrec stage2 --stage1 runs/a --out runs/b                                     # one process
"""

from ptmrec_dist.config import Stage2Config
from ptmrec_dist.config.common import require
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders.sequences import SequenceRecommender
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.objectives.transfer import TransferSettings
from ptmrec_dist.training.refit import refit_if_asked
from ptmrec_dist.training.sequence_transfer import tune_on_sequences
from ptmrec_dist.training.session import Report
from ptmrec_dist.training.tune import tune


@exclusive_out
def train_stage2(config: Stage2Config) -> None:
    """Tune the encoder and write the run folder (`ptmrec stage2`, `launchers/stage2.py`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: A stage 1 run that is missing, unfinished, ID-only or of other data; an encoder that is not the one that
            the features came from; a method that a tower cannot take; a run folder of other settings.
    """
    tune_from(config, load_run(config.stage1, config, name="stage1"))
    refit_if_asked(config)


def tune_from(config: Stage2Config, start: FinishedRun, report: Report | None = None) -> None:
    """Tune the encoder of a finished run, guided by its recommender.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: The run of stage 1. Where its data set does not show the test split, the run ends with metrics of validation
            alone.
        report: Called with each evaluation on every rank, also with those that an interrupted run had made before.

    Raises:
        UserError: As for `train_stage2`.
    """
    if isinstance(start.recommender, SequenceRecommender):
        tune_on_sequences(config, start, report)
        return
    alone = f"with {start.record.recommender}: only sequence recommenders such as morec read it"
    require(config.teacher_run is None, "teacher_run", config.teacher_run, f"none {alone}")
    require(config.user_states == "modal", "user_states", config.user_states, f"modal {alone}")
    transfer = TransferSettings(
        weight=config.kt_weight,
        temperature=config.temperature,
        live_teacher=config.teacher == "live",
        id_only=config.teacher_scores == "id",
        mask_known=config.known_positives == "mask",
    )
    tune(config, start, transfer, report)
