"""Evaluation of a recommender that is trained on features as they are."""

from dataclasses import replace

from safetensors import safe_open
from torch import Tensor

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import barrier
from ptmrec_dist.distributed.engine import Engine
from ptmrec_dist.distributed.rows import OwnRows, row_tables, whole_pieces
from ptmrec_dist.distributed.tensor_file import save_pieces
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.training.averaging import EpochAverage
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluator import Evaluator, Masking, Metrics, evaluate_phases
from ptmrec_dist.training.objectives.recommender import RecommenderObjective
from ptmrec_dist.training.records import RECOMMENDER_FILE, RunRecord
from ptmrec_dist.training.session import Session

MOST_USERS = 100_000
"""Users that are evaluated between epochs, at most."""
DECIDING_PART = "validation"
"""Part whose metric decides which epoch is kept."""


class RankingEvaluation:
    """Evaluation of a recommender between epochs; the best on known items is kept: their vectors are what is trained.

    Between epochs at most 100,000 users are evaluated, sampled once; in the end all are.

    Args:
        config: Settings.
        session: The run while it trains.
        objective: Recommender and features.
        dataset: Packed data set.
    """

    def __init__(
        self, config: Stage1Config, session: Session, objective: RecommenderObjective, dataset: Dataset
    ) -> None:
        self.config, self.session, self.world = config, session, session.world
        self.objective, self.dataset = objective, dataset
        self.path = session.run.folder / RECOMMENDER_FILE
        self.masking = Masking(config.mask_history, config.mask_validation_at_test)
        self.evaluator = Evaluator(dataset, "validation", self.masking, MOST_USERS)
        self.average = EpochAverage(objective.trained() if config.average else {})

    def measure(self, engine: Engine) -> Metrics:
        """Evaluate the average of the weights on validation; maps for cold items are fitted before where they are read."""
        recommender, features = self.objective.recommender, self.objective.features
        self.average.add()
        with self.average.in_place():
            if self.evaluator.cold_items is not None or recommender.reads_cold_items:
                recommender.fit_cold_map(features)
            return self.evaluator(recommender, features, self.world)

    def deciding_part(self, metrics: Metrics) -> str:
        """Return the part of known items, whatever else was evaluated."""
        return DECIDING_PART

    def keep(self) -> None:
        """Write the average of the weights."""
        with self.average.in_place():
            self._write()

    def state(self) -> dict[str, Tensor]:
        """Return the average of the weights."""
        return self.average.state()

    def finish(self, start: RunRecord, stopping: EarlyStopping) -> None:
        """Evaluate what was kept on every part, the test split for the first time, and write lineage and metrics.

        The maps for cold items are fitted to the weights that were kept.

        Collective: every rank must call this.

        Args:
            start: Lineage of what the run started from.
            stopping: Early stopping, which knows what was kept.
        """
        if stopping.kept is None:  # no epoch was asked for
            self._write()
        barrier()
        with safe_open(self.path, "pt") as file:
            kept = OwnRows(file, row_tables(self.objective.recommender))
            self.objective.load_weights({name: kept.get_tensor(name) for name in self.objective.weights()})
        self.objective.recommender.fit_cold_map(self.objective.features)
        barrier()
        self._write()
        record = replace(
            start,
            stage=1,
            train_features=self.config.train_features,
            mask_validation_at_test=self.masking.validation,
            mask_history=self.masking.history,
            parameters=self.objective.parameter_counts(),
            kept_epoch=stopping.kept_epoch,
        )
        recommender, features = self.objective.recommender, self.objective.features
        metrics = evaluate_phases(self.dataset, recommender, features, self.world, self.masking)
        self.session.finish(record, metrics)
        if self.world.is_first:
            counts, tables = record.parameters, "trained" if record.train_features else "frozen"
            print(
                f"parameters: {counts['trainable']:,} trainable; {counts['ids']:,} of IDs, {counts['rest']:,} of the rest, "
                f"{counts['feature_tables']:,} of feature tables ({tables})"
            )

    def _write(self) -> None:
        path, tables = self.path if self.world.is_first else None, row_tables(self.objective.recommender)
        with writing(self.world, f"the weights to {self.path}", "what was written before is still there"):
            save_pieces(path, whole_pieces(self.objective.weights(), tables))
