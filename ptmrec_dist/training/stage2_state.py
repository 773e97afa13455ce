"""What stage 2 keeps: checkpoints to resume from, the weights that are kept so far, and the finished run."""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.feature_store import open_features, write_features
from ptmrec_dist.distributed import barrier
from ptmrec_dist.encoders.features import count_absent
from ptmrec_dist.encoders.sources.loading import tuned_fingerprint
from ptmrec_dist.files import link_or_copy
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.checkpoint import Checkpoints, LoopState, save_engine
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluate import evaluate_phases, print_metrics
from ptmrec_dist.training.loaded import LoadedRun, tensors_of, untrained_recommender
from ptmrec_dist.training.loop import resume_from
from ptmrec_dist.training.optim import skip_to, steps_before
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE
from ptmrec_dist.training.runs import RunFolder, flatten, save_tensors
from ptmrec_dist.training.stage2_parts import Stage2
from ptmrec_dist.training.tuner import Tuner

FEATURES_FILE = "features.safetensors"


@dataclass(frozen=True)
class Weights:
    """What stage 2 trains, copied to the CPU."""

    recommender: dict[str, Tensor]
    """State of the recommender."""
    encoder: dict[str, Tensor]
    """What was tuned inside the encoder; empty where it is frozen."""

    @classmethod
    def of(cls, tuner: Tuner) -> "Weights":
        """Copy the weights of a tuner, whose parameters must be whole.

        Args:
            tuner: Encoder and recommender.

        Returns:
            The copies.
        """
        inside = {} if tuner.encoder is None else tuner.encoder.tuned_state()
        return cls(_copied(tuner.recommender.state_dict()), _copied(inside))


def resume(stage: Stage2, checkpoints: Checkpoints) -> LoopState:
    """Resume from the newest complete checkpoint, or start where there is none.

    Collective: every rank must call this.

    Args:
        stage: Stage 2 as `prepare` made it.
        checkpoints: Checkpoints of the run.

    Returns:
        State of the loop.

    Raises:
        UserError: Ranks see different checkpoints, or they are of another model.
    """
    config, world = stage.config, stage.world
    layout = stage.start.dataset.manifest.layout
    begin = LoopState(world_size=world.size, layout=layout, stopping=EarlyStopping(config.patience, config.keep))
    folder, loop = resume_from(stage.engine, checkpoints, world, begin, ordered_by_ranks=config.batching == "item")
    if folder is not None:
        skip_to(stage.schedule, steps_before(stage.stream, loop.epoch, config.accumulation) + loop.step)
        if stage.tuner.encoder is not None:
            # The stored features are those of the last refresh, which the interrupted run had in memory.
            features = load_file(folder / FEATURES_FILE)
            stage.tuner.features = {modality: table.to(world.device) for modality, table in features.items()}
    return loop


def write_checkpoint(stage: Stage2, folder: Path) -> None:
    """Write what `resume` needs into a checkpoint folder.

    Features are written once a refresh, beside the checkpoints, which hold links to them: they are gone from the disk with the
    last checkpoint that has them. Those of a frozen encoder are those that stage 2 started from.

    Collective: every rank must call this.

    Args:
        stage: Stage 2.
        folder: The checkpoint's folder.
    """
    save_engine(stage.engine, folder)
    if stage.world.is_first and stage.tuner.encoder is not None:
        written = folder.parent / FEATURES_FILE
        if not stage.features_written:
            save_tensors(written, stage.tuner.features)
            stage.features_written = True
        link_or_copy(written, folder / FEATURES_FILE)


def with_fitted_maps(stage: Stage2, weights: Weights) -> tuple[Recommender, Weights]:
    """Give the recommender that is evaluated and kept, with maps for cold items that fit the features in use.

    L_KT trains the maps on the features as they change. Without it nothing does, so they are fitted as stage 1 does, in a
    second recommender: ZeRO's optimiser would undo a change in the one in training. Under ZeRO-3 the second one is what is
    evaluated anyway: ranks ask for different numbers of users, and each call of the one in training is collective.

    Args:
        stage: Stage 2; its features are those of the weights.
        weights: Weights as training left them.

    Returns:
        The recommender, and the weights with its maps in them.
    """
    if stage.fitted is None:
        return stage.tuner.recommender, weights
    stage.fitted.load_state_dict(weights.recommender)
    if not stage.tuner.transfer.weight:
        stage.fitted.fit_cold_map(stage.tuner.features)
    return stage.fitted, replace(weights, recommender=_copied(stage.fitted.state_dict()))


def save_kept(stage: Stage2, weights: Weights, folder: Path) -> None:
    """Write weights, and the features as they stand; for the first rank alone.

    Args:
        stage: Stage 2.
        weights: Weights that the features were made with.
        folder: Run folder.
    """
    save_tensors(folder / RECOMMENDER_FILE, weights.recommender)
    made = stage.start.record.encoder
    assert made is not None  # check_start refused runs without an encoder
    if stage.tuner.encoder is not None:
        tuned = folder / ENCODER_FILE
        save_tensors(tuned, weights.encoder, stage.tuner.encoder.description)
        fingerprint = tuned_fingerprint(made["fingerprint"], tuned)
        made = {"model": str(folder.resolve()), "pretrained": None, "fingerprint": fingerprint}
    write_features(
        folder / "features",
        {modality: table.cpu().numpy() for modality, table in stage.tuner.features.items()},
        data=stage.start.dataset.fingerprint,
        encoder=made["fingerprint"],
        settings={name: value for name, value in made.items() if name != "fingerprint"},
        filled={
            modality: count
            for modality, count in count_absent(stage.start.dataset).items()
            if modality in stage.tuner.features
        },
    )


def finish(stage: Stage2, loop: LoopState, run: RunFolder, tracker: Tracker) -> None:
    """Evaluate the epoch that is kept on every part, the test split for the first time, and write lineage and metrics.

    Collective: every rank must call this.

    Args:
        stage: Stage 2 after its last step.
        loop: State of the loop.
        run: Run folder; it holds the weights of the epoch that is kept.
        tracker: Where metrics and artefacts are logged.
    """
    barrier()
    dataset, masked = stage.start.dataset, stage.config.mask_validation_at_test
    # What was written is evaluated, as anyone who loads the run would find it.
    kept = untrained_recommender(stage.start.record, dataset, run.folder).to(stage.world.device)
    kept.load_state_dict(load_file(run.folder / RECOMMENDER_FILE))
    store = open_features(run.folder / "features", dataset.fingerprint, dataset.num_items)
    tables = {
        modality: table.to(stage.world.device) for modality, table in tensors_of(store, list(store.tables)).items()
    }
    metrics = evaluate_phases(dataset, kept, tables, stage.world, masked)
    efficiency = stage.meter.summary(stage.world)
    if stage.world.is_first:
        run.write_efficiency(efficiency)
        record = replace(
            stage.start.record,
            stage=2,
            data={"path": str(dataset.folder.resolve()), "fingerprint": dataset.fingerprint},
            features={"path": str(store.folder.resolve()), "fingerprint": store.manifest.fingerprint},
            stage1=_reference(stage.start) if stage.start.record.stage == 1 else None,
            parameters=stage.parameters,
            mlflow_run=tracker.run_id,
            mask_validation_at_test=masked,
            kept_epoch=loop.stopping.kept_epoch,
            fingerprint="",
        )
        run.finish(record, metrics)
        print_metrics(metrics)
        counts = stage.parameters
        print(f"trained parameters: {counts['encoder']:,} in the encoder, {counts['recommender']:,} in the recommender")
    names = ("config.yaml", "run.json", "metrics.json", "history.jsonl", RECOMMENDER_FILE, ENCODER_FILE)
    counted = {f"parameters/{name}": float(count) for name, count in stage.parameters.items()}
    tracker.metrics(flatten(metrics) | counted | efficiency, loop.stopping.kept_epoch)
    tracker.artifacts([run.folder / name for name in names if (run.folder / name).is_file()])


def _reference(start: LoadedRun) -> dict[str, str]:
    return {"path": str(start.folder.resolve()), "fingerprint": start.record.fingerprint}


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
