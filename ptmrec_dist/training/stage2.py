"""Stage 2: tune the encoder, guided by what stage 1 learned about users (PTMRec sections 2.3 and 2.4).

deepspeed --num_gpus 8 launchers/stage2.py --stage1 runs/a --out runs/b        # GPUs, or ranks on a CPU
ptmrec stage2 --stage1 runs/a --out runs/b                                     # one process
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ptmrec_dist.config import Stage2Config, TrainsBoth
from ptmrec_dist.data.pairs import TrainBatch
from ptmrec_dist.distributed import barrier, join_world
from ptmrec_dist.encoders.features import encode_all
from ptmrec_dist.evaluation.metrics import SELECT, selecting_part
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.checkpoint import Checkpoints, LoopState, writing
from ptmrec_dist.training.evaluate import Evaluator
from ptmrec_dist.training.loaded import LoadedRun, load_run
from ptmrec_dist.training.loop import run_epochs
from ptmrec_dist.training.runs import RunFolder, flatten, plain_settings
from ptmrec_dist.training.stage2_parts import Report, Stage2, check_start, prepare
from ptmrec_dist.training.stage2_state import Weights, finish, resume, save_kept, with_fitted_maps, write_checkpoint


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
    tune(config, load_run(config.stage1, config))


def tune(config: TrainsBoth, start: LoadedRun, report: Report | None = None) -> None:
    """Train encoder and recommender together from where a run stands, and write the run folder.

    Collective: every rank must call this.

    Args:
        config: Settings.
        start: A run of stage 1, or an untrained recommender. Where its data set does not show the test split, the run ends
            with metrics of validation alone.
        report: Gets each evaluation on every rank, also those that an interrupted run had made before.

    Raises:
        UserError: As `train_stage2`.
    """
    run = RunFolder(config.out, config, start.record.inputs)
    if run.is_complete:
        print(f"{config.out} is complete; nothing to do")
        return
    encoder = check_start(config, start)
    world = join_world(config.device, config.timeout)
    stage = prepare(config, start, encoder, world)
    if world.is_first:
        run.start()
    barrier()
    checkpoints = Checkpoints(config.out / "checkpoints", config.keep_checkpoints)
    loop = resume(stage, checkpoints)
    if report is not None:
        stage.report = report
    for line in loop.history:
        stage.report(line)
    tracking = Tracker.start(
        config.tracking,
        name=config.out.name,
        params=flatten(plain_settings(config)),
        tags={"stage": "2", "data": start.dataset.fingerprint, "started_from": start.record.fingerprint or "scratch"},
        parent=start.record.mlflow_run,
        run_id=run.mlflow_run,
        active=world.is_first,
    )
    with tracking as tracker, stage.watch:
        if world.is_first:
            run.mlflow_run = tracker.run_id
        if _train(stage, loop, run, checkpoints, tracker):
            finish(stage, loop, run, tracker)
            if world.is_first:
                checkpoints.clear()
        else:
            tracker.interrupted()
    barrier()


def train_step(stage: Stage2, window: list[TrainBatch], step: int) -> None:
    """Do one step of the optimiser on one or more micro-batches.

    Each micro-batch has its own in-batch distributions; their gradients are averaged, also in a window that an epoch's end
    cut short. Nothing here waits for the device, unless the losses are due to be read.

    Collective: every rank must call this.

    Args:
        stage: Model, engine, settings.
        window: The step's micro-batches.
        step: Number of the step since the start.

    Raises:
        UserError: A term or a gradient was not finite on some rank; the update was not made.
    """
    for index, batch in enumerate(window):
        losses = stage.engine(batch.to(stage.world.device), step * stage.config.accumulation + index)
        stage.monitor.note(step, losses, 1 / len(window))
        loss = torch.stack(list(losses.values())).sum() / len(window)
        stage.engine.backward(loss, last=index == len(window) - 1)
    stage.monitor.update(stage.engine)
    stage.schedule.step()


@dataclass(frozen=True)
class _Task:
    """Stage 2 as the loop sees it."""

    stage: Stage2
    loop: LoopState
    evaluate: Callable[[], None]

    def start_epoch(self, epoch: int) -> int:
        stage, config = self.stage, self.stage.config
        # On the CPU: GPUs of different models may generate different numbers from one seed, and ranks must agree.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        stage.tuner.recommender.start_epoch(generator)
        stage.tuner.train()
        return -(-stage.stream.steps(epoch) // config.accumulation)

    def windows(self, epoch: int, skip: int) -> Iterator[list[TrainBatch]]:
        size = self.stage.config.accumulation
        batches = self.stage.stream.epoch(epoch, skip * size)
        while window := list(itertools.islice(batches, size)):
            yield window

    def step(self, window: list[TrainBatch], number: int) -> int:
        train_step(self.stage, window, number)
        return sum(len(batch.content.items) for batch in window)

    def end_epoch(self) -> None:
        if self.loop.epoch % self.stage.config.refresh_every == 0 or self.loop.epoch == self.stage.config.epochs:
            self.evaluate()

    def write(self, folder: Path) -> None:
        write_checkpoint(self.stage, folder)


def _train(stage: Stage2, loop: LoopState, run: RunFolder, checkpoints: Checkpoints, tracker: Tracker) -> bool:
    """Train to the end; False where the user interrupted."""
    config = stage.config
    evaluator = Evaluator(stage.start.dataset, "validation")
    evaluate = functools.partial(_evaluate, stage, loop, run, evaluator, tracker)
    if not loop.history:
        evaluate()
    task = _Task(stage, loop, evaluate)
    return run_epochs(task, stage, loop, checkpoints, epochs=config.epochs, checkpoint_every=config.checkpoint_every)


def _evaluate(stage: Stage2, loop: LoopState, run: RunFolder, evaluate: Evaluator, tracker: Tracker) -> None:
    """Refresh all features, evaluate, and keep the weights where they are the ones to keep so far."""
    with stage.engine.whole():
        weights = Weights.of(stage.tuner)  # now: under ZeRO-3 a forward pass divides its parameters again
        _refresh_features(stage)
        recommender, weights = with_fitted_maps(stage, weights)
        metrics = evaluate(recommender, stage.tuner.features, stage.world)
    kept = loop.stopping.update(metrics[selecting_part(metrics, stage.config.select_on)][SELECT], loop.epoch)
    if kept:
        with writing(stage.world, f"the weights so far to {run.folder}", "the last checkpoint is still there"):
            if stage.world.is_first:
                save_kept(stage, weights, run.folder)
    line = {"epoch": loop.epoch, **{f"loss/{name}": value for name, value in loop.losses.items()}, **flatten(metrics)}
    loop.history.append(line)
    if stage.world.is_first:
        run.write_history(loop.history)
        shown = "  ".join(f"{part} {SELECT} {values[SELECT]:.4f}" for part, values in metrics.items())
        tqdm.write(f"epoch {loop.epoch}: {shown}{'  (best)' if kept and stage.config.keep == 'best' else ''}")
    tracker.metrics({name: value for name, value in line.items() if name != "epoch"}, loop.epoch)
    stage.report(line)


def _refresh_features(stage: Stage2) -> None:
    if stage.tuner.encoder is None or stage.refresh is None:
        return
    device = stage.world.device
    fresh = encode_all(stage.tuner.encoder, stage.refresh, stage.start.dataset.num_items, stage.world, "refresh")
    for modality, table in fresh.items():
        table = table.to(device)
        was_read = table.any(dim=1, keepdim=True)  # an item that could not be read keeps the features it had
        stage.tuner.features[modality] = table.where(was_read, stage.tuner.features[modality])
    stage.features_written = False
