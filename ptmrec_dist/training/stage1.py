"""Stage 1: train a recommender on the frozen encoder's features (PTMRec section 2.2).

ptmrec stage1 --shards shards/movies --features features/movies --recommender vbpr --out runs/a         # one process
deepspeed --num_gpus 2 launchers/stage1.py --shards shards/movies --recommender lightgcn --out runs/a   # over ranks

Over ranks every rank holds the whole graph and samples the whole global batch, the same on all (or is refused), and takes its
part of the rows: N ranks train as one process would on the same batches.

Legend: B interactions of this rank, G interactions of the global batch.
"""

import functools

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ptmrec_dist.allocator import keep_freed_memory
from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import barrier, join_world, require_same_random_numbers
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.recommenders.base import Batch
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.checkpoint import Checkpoints, LoopState, load_engine, save_engine
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluate import Evaluator, Metrics, evaluate_phases, print_metrics
from ptmrec_dist.training.records import RECOMMENDER_FILE
from ptmrec_dist.training.runs import RunFolder, flatten, plain_settings, save_tensors
from ptmrec_dist.training.stage1_parts import Stage1, make_record, open_store, prepare, untrained_record


@exclusive_out
def train_stage1(config: Stage1Config) -> None:
    """Train a recommender and write its run folder (`ptmrec stage1`, `launchers/stage1.py`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Features that are missing or of other data, a run folder of other settings, an unknown hyper-parameter.
        Fault: A rank was lost.
    """
    keep_freed_memory()
    dataset = Dataset(config.shards)
    dataset.require("validation")
    store = open_store(config, dataset)
    run = RunFolder(config.out, config, untrained_record(config, dataset, store).inputs)
    if run.is_complete:
        print(f"{config.out} is complete; nothing to do")
        return
    world = join_world(config.device, config.timeout)
    require_same_random_numbers(len(dataset.interactions("train").items), world)
    stage = prepare(config, dataset, store, world)
    if stage.world.is_first:
        run.start()
    barrier()
    checkpoints = Checkpoints(config.out / "checkpoints", keep=2)
    loop = _resume(stage, checkpoints)
    tracking = Tracker.start(
        config.tracking,
        name=config.out.name,
        params=flatten(plain_settings(config)),
        tags={"stage": "1", "data": dataset.fingerprint},
        run_id=run.mlflow_run,
        active=stage.world.is_first,
    )
    with tracking as tracker, stage.watch:
        if stage.world.is_first:
            run.mlflow_run = tracker.run_id
        if _train(stage, loop, run, checkpoints, tracker):
            _finish(stage, loop, run, tracker)
            if stage.world.is_first:
                checkpoints.clear()
        else:
            tracker.interrupted()
    barrier()


def train_step(stage: Stage1, rows_G: Tensor, generator: torch.Generator, step: int) -> None:
    """Do one step of Adam on a global batch of interactions; nothing in it waits for the device.

    Collective: every rank must call this, with the same batch and a generator in the same state.

    Args:
        stage: Model, engine, data.
        rows_G: Positions among the training interactions, int64 [G].
        generator: Source of the negatives.
        step: Number of the step since the start.

    Raises:
        UserError: ZeRO found a gradient that is not finite; the update was not made.
    """
    negatives_G = stage.negatives.sample(stage.users[rows_G], generator)
    rows_B, negatives_B = (part.tensor_split(stage.world.size)[stage.world.rank] for part in (rows_G, negatives_G))
    histories = None if stage.recent is None else stage.recent.before(rows_B)
    loss = stage.engine(Batch(stage.users[rows_B], stage.items[rows_B], negatives_B, histories), len(rows_G))
    stage.monitor.note(step, {"loss": loss}, 1.0)
    stage.engine.backward(loss, last=True)
    stage.monitor.update(stage.engine)
    stage.recommender.finish_step()


def _train(stage: Stage1, loop: LoopState, run: RunFolder, checkpoints: Checkpoints, tracker: Tracker) -> bool:
    """Train to the end; False where the user interrupted."""
    config, world, evaluate = stage.config, stage.world, Evaluator(stage.dataset, "validation")
    save = functools.partial(checkpoints.save, loop, functools.partial(save_engine, stage.engine), world)
    bar = tqdm(total=config.epochs, initial=loop.epoch, desc="stage 1", unit="epoch", disable=not world.is_first)
    with stage.monitor.interrupt as interrupt, bar:
        while loop.epoch < config.epochs and not loop.stopping.should_stop:
            with stage.meter.epoch():
                loss = train_epoch(stage, loop.epoch)
            stage.watch.between()
            loop.epoch, loop.total_steps = loop.epoch + 1, loop.epoch + 1
            bar.update()
            if loop.epoch % config.eval_every == 0 or loop.epoch == config.epochs:
                metrics = _evaluate(stage, loop, loss, run, evaluate)
                tracker.metrics({"loss": loss, **flatten(metrics)}, loop.epoch)
                bar.set_postfix({"loss": f"{loss:.4f}", SELECT: f"{metrics['validation'][SELECT]:.4f}"})
            interrupted = interrupt.requested_anywhere(world.device)
            if interrupted or loop.epoch % config.checkpoint_every == 0:
                save()
            if interrupted:
                if world.is_first:
                    print(f"interrupted after epoch {loop.epoch}; run the same command to resume")
                return False
    if loop.stopping.kept is None and world.is_first:  # no epoch was asked for
        save_tensors(run.folder / RECOMMENDER_FILE, stage.objective.state())
    return True


def train_epoch(stage: Stage1, epoch: int) -> float:
    """One pass over the training interactions, and its mean loss; the host waits for the device at its end alone."""
    device = stage.world.device
    generator = torch.Generator(device).manual_seed(stage.config.seed * 1_000_003 + epoch)
    stage.recommender.train()
    stage.recommender.start_epoch(generator)
    order_E = torch.randperm(len(stage.users), generator=generator, device=device)
    batches, stage.monitor.sums = order_E.split(stage.config.batch_size), {}
    for step, rows_G in enumerate(batches, start=epoch * len(batches)):
        stage.watch.at(step + 1)
        train_step(stage, rows_G, generator, step)
    stage.monitor.read()
    return stage.monitor.sums["loss"] / len(batches)


def _evaluate(stage: Stage1, loop: LoopState, loss: float, run: RunFolder, evaluate: Evaluator) -> Metrics:
    """Evaluate, and keep the weights where they are the best so far on known items: their vectors are what is trained."""
    if evaluate.cold_items is not None:
        stage.recommender.fit_cold_map(stage.objective.features)
    metrics = evaluate(stage.recommender, stage.objective.features, stage.world)
    best = loop.stopping.update(metrics["validation"][SELECT], loop.epoch)
    loop.history.append({"epoch": loop.epoch, "loss": loss, **flatten(metrics)})
    if stage.world.is_first:
        if best:
            save_tensors(run.folder / RECOMMENDER_FILE, stage.objective.state())
        run.write_history(loop.history)
    return metrics


def _finish(stage: Stage1, loop: LoopState, run: RunFolder, tracker: Tracker) -> None:
    """Evaluate the epoch that was kept on every part, the test split for the first time, and write lineage and metrics."""
    barrier()
    stage.objective.load(load_file(run.folder / RECOMMENDER_FILE))
    stage.recommender.fit_cold_map(stage.objective.features)
    barrier()
    if stage.world.is_first:
        save_tensors(run.folder / RECOMMENDER_FILE, stage.objective.state())
    metrics = evaluate_phases(
        stage.dataset,
        stage.recommender,
        stage.objective.features,
        stage.world,
        stage.config.mask_validation_at_test,
    )
    record = make_record(stage, tracker.run_id, loop.stopping.kept_epoch)
    efficiency = stage.meter.summary(stage.world)
    if stage.world.is_first:
        run.write_efficiency(efficiency)
        run.finish(record, metrics)
        print_metrics(metrics)
        counts = record.parameters
        print(
            f"parameters: {counts['trainable']:,} trainable; {counts['ids']:,} of IDs, {counts['rest']:,} of the rest, "
            f"{counts['feature_tables']:,} of feature tables ({'trained' if record.train_features else 'frozen'})"
        )
    tracker.metrics(
        flatten(metrics) | efficiency | {f"parameters/{name}": float(n) for name, n in record.parameters.items()},
        loop.stopping.kept_epoch,
    )
    tracker.artifacts([run.folder / name for name in ("config.yaml", "run.json", "metrics.json", RECOMMENDER_FILE)])


def _resume(stage: Stage1, checkpoints: Checkpoints) -> LoopState:
    found = checkpoints.latest()
    if found is None:
        steps = -(-len(stage.users) // stage.config.batch_size)
        stopping = EarlyStopping(stage.config.patience, after=stage.config.patience_after // steps)
        return LoopState(world_size=stage.world.size, stopping=stopping)
    folder, loop = found
    load_engine(stage.engine, folder)
    before, loop.world_size = loop.world_size, stage.world.size
    if stage.world.is_first:
        changed = f" on {stage.world.size} ranks instead of {before}; weights and Adam's moments carry over"
        print(f"resuming after epoch {loop.epoch}{changed if before != stage.world.size else ''}")
    return loop
