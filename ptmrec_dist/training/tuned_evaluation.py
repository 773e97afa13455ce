"""Evaluation of an encoder and a recommender that are trained together: on features that the encoder gives now.

What is measured is what is kept: the weights, and the features of all items that they give.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import TrainsBoth
from ptmrec_dist.data.feature_store import open_features, write_features
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import barrier
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.encoders.encoding import count_absent, encode_all, reader_of
from ptmrec_dist.encoders.sources.loading import tuned_fingerprint
from ptmrec_dist.evaluation.metrics import selecting_part
from ptmrec_dist.lineage import reference_to
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.sequential.fusion import FUSED
from ptmrec_dist.training.batches import item_stream
from ptmrec_dist.training.evaluator import Evaluator, Metrics, evaluate_phases, masking_of
from ptmrec_dist.training.finished_run import FinishedRun, tensors_of, untrained_recommender
from ptmrec_dist.training.fused_encoder import encoder_of
from ptmrec_dist.training.objectives.tuned import TrainsEncoder
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE
from ptmrec_dist.training.session import Session


@dataclass(frozen=True)
class Weights:
    """What stage 2 trains, copied to the CPU."""

    recommender: dict[str, Tensor]
    """State of the recommender."""
    encoder: dict[str, Tensor]
    """What was tuned inside the encoder; empty where it is frozen."""

    @classmethod
    def of(cls, objective: TrainsEncoder) -> "Weights":
        """Copy the weights of an objective, whose parameters must be whole.

        Args:
            objective: Encoder and recommender.

        Returns:
            The copies.
        """
        inside = {} if objective.encoder is None else objective.encoder.tuned_state()
        return cls(_copied(objective.recommender.state_dict()), _copied(inside))


class TunedEvaluation:
    """Refreshes the features of all items, evaluates, and writes what is kept.

    Args:
        config: Settings.
        session: The run while it trains.
        objective: Encoder and recommender, all parameters whole.
        start: What they started from.
    """

    def __init__(self, config: TrainsBoth, session: Session, objective: TrainsEncoder, start: FinishedRun) -> None:
        self.config, self.session, self.world = config, session, session.world
        self.objective, self.start = objective, start
        self.masking = replace(masking_of(start.record), validation=config.mask_validation_at_test)
        self.evaluator = Evaluator(start.dataset, "validation", self.masking)
        self.parameters = _parameter_counts(objective)  # now: ZeRO-3 leaves a rank a part of each parameter
        self.weights = Weights({}, {})
        self.refresh = self._all_items()
        self.features_are_current = False
        # A second recommender gets maps for cold items fitted: ZeRO's optimiser would undo a change in the one in training, and
        # under ZeRO-3, where ranks ask for different numbers of users, each call of that one is collective.
        self.fitted = untrained_recommender(start.record, start.dataset, start.folder).to(self.world.device)

    def measure(self, engine: Engine) -> Metrics:
        """Refresh the features of all items, and evaluate on validation."""
        with engine.whole():
            self.weights = Weights.of(self.objective)  # now: under ZeRO-3 a forward pass divides its parameters again
            if not self.features_are_current:
                self._refresh_features()
            self.features_are_current = False  # training follows
            return self.evaluator(self._fitted_recommender(), self.objective.features, self.world)

    def deciding_part(self, metrics: Metrics) -> str:
        """Return the part that the settings choose."""
        return selecting_part(metrics, self.config.select_on)

    def keep(self) -> None:
        """Write the weights that were measured, and their features."""
        folder = self.session.run.folder
        with writing(self.world, f"the weights so far to {folder}", "the last checkpoint is still there"):
            if self.world.is_first:
                self._write(folder)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: what is measured are the weights themselves."""
        return {}

    def finish(self, kept_epoch: int) -> None:
        """Evaluate what was kept on every part, the test split for the first time, and write lineage and metrics.

        Collective: every rank must call this.

        Args:
            kept_epoch: Epoch that was kept.
        """
        barrier()
        folder, dataset = self.session.run.folder, self.start.dataset
        # What was written is evaluated, as anyone who loads the run would find it.
        kept = untrained_recommender(self.start.record, dataset, folder).to(self.world.device)
        kept.load_state_dict(load_file(folder / RECOMMENDER_FILE))
        store = open_features(folder / "features", dataset.fingerprint, dataset.num_items)
        tables = {name: table.to(self.world.device) for name, table in tensors_of(store, list(store.tables)).items()}
        begun = self.start
        record = replace(
            begun.record,
            stage=2,
            data=reference_to(dataset.folder, dataset.fingerprint),
            features=reference_to(store.folder, store.manifest.fingerprint),
            stage1=reference_to(begun.folder, begun.record.fingerprint) if begun.record.stage == 1 else None,
            stage2=None,
            previous=None,
            parameters=self.parameters,
            mask_validation_at_test=self.masking.validation,
            kept_epoch=kept_epoch,
            fingerprint="",
        )
        self.session.finish(record, evaluate_phases(dataset, kept, tables, self.world, self.masking))
        if self.world.is_first:
            counts = self.parameters
            print(
                f"trained parameters: {counts['encoder']:,} in the encoder, {counts['recommender']:,} in the recommender"
            )

    def _all_items(self) -> ItemStream | None:
        encoder, world = self.objective.encoder, self.world
        if encoder is None:
            return None
        rows = max(self.config.batch_size // world.size, 64)
        return item_stream(self.config, self.start.dataset, reader_of(encoder), world, rows)

    def _refresh_features(self) -> None:
        encoder, before = self.objective.encoder, self.objective.features
        if encoder is None or self.refresh is None:
            return
        joined = encoder_of(self.objective.recommender, encoder)
        tables = encode_all(joined, self.refresh, self.start.dataset.num_items, self.world, "refresh")
        fresh = {modality: table.to(self.world.device) for modality, table in tables.items()}
        # An item that could not be read keeps the features it had, and so do all items in a modality that is not tuned.
        read = {
            name: table.where(table.any(dim=1, keepdim=True), before.get(name, table)) for name, table in fresh.items()
        }
        self.objective.replace_features({**before, **read})

    def _fitted_recommender(self) -> Recommender:
        """The recommender that is evaluated and kept, with maps for cold items that fit the features in use."""
        self.fitted.load_state_dict(self.weights.recommender)
        self.fitted.fit_cold_map(self.objective.features)
        self.weights = replace(self.weights, recommender=_copied(self.fitted.state_dict()))
        return self.fitted

    def _write(self, folder: Path) -> None:
        dataset, tables = self.start.dataset, self.objective.features
        save_tensors(folder / RECOMMENDER_FILE, self.weights.recommender)
        made = self.start.record.encoder
        assert made is not None  # check_start refused runs without an encoder
        if self.objective.encoder is not None and self.objective.encoder.num_tuned:
            tuned = folder / ENCODER_FILE
            save_tensors(tuned, self.weights.encoder, self.objective.encoder.description)
            fingerprint = tuned_fingerprint(made["fingerprint"], tuned)
            made = {"model": str(folder.resolve()), "pretrained": None, "fingerprint": fingerprint}
        if FUSED in tables:  # no encoder gives them by itself
            made = {}
        write_features(
            folder / "features",
            {modality: table.cpu().numpy() for modality, table in tables.items()},
            data=dataset.fingerprint,
            encoder=made.get("fingerprint"),
            settings={name: value for name, value in made.items() if name != "fingerprint"},
            filled={name: count for name, count in count_absent(dataset).items() if name in tables},
        )


def _parameter_counts(objective: TrainsEncoder) -> dict[str, int]:
    encoder = 0 if objective.encoder is None else objective.encoder.num_tuned
    recommender = sum(parameter.numel() for parameter in objective.recommender.parameters() if parameter.requires_grad)
    return {"encoder": encoder, "recommender": recommender, "trainable": encoder + recommender}


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
