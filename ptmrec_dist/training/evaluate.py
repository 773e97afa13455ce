"""Evaluation of a recommender on a packed data set, and `ptmrec evaluate`.

Warm protocol: every item that was there in training is ranked for every user. Cold protocol: the held-out items are ranked
among themselves, scored through the maps of eq. 12, for they have no ID representation.

Legend: I items, C cold items, D width.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ptmrec_dist.config import EvaluateConfig
from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.data.splits import PARTS
from ptmrec_dist.distributed import World, join_world, sum_over_ranks
from ptmrec_dist.evaluation.metrics import SELECT, SHOWN, read_metrics
from ptmrec_dist.evaluation.ranking import Ranked, UserMetrics, metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import recent_items, scorer_of
from ptmrec_dist.files import write_atomically
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import RunRecord

Metrics = dict[str, dict[str, float]]
"""Part (`validation`, `test`, `cold_validation`, `cold_test`) to metric (`recall@20`, ...) to value."""


class Evaluator:
    """Scores one phase of a data set; a validation evaluator has no way to reach the test split.

    A part without interactions has no metrics. Models that read histories get those of the training part, in the test phase
    those of the validation part too.

    Args:
        dataset: The packed data set.
        phase: `validation` or `test`.
        mask_validation: Leave validation positives out of the ranking (test phase).
    """

    def __init__(self, dataset: Dataset, phase: str, mask_validation: bool = False) -> None:
        self.phase, self.dataset = phase, dataset
        self.known_parts = (
            ("train",)
            if phase == "validation"
            else tuple(part for part in ("train", "validation") if part in dataset.parts)
        )
        self.positives = _histories(dataset, phase) if phase in dataset.parts else None
        masked = ["validation"] if mask_validation and phase == "test" and "validation" in dataset.parts else []
        self.seen = _histories(dataset, "train", *masked)
        self.cold_items: np.ndarray | None = None
        self.warm_items: np.ndarray | None = None
        held_out = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")])
        if len(held_out):
            self.warm_items = np.setdiff1d(np.arange(dataset.num_items), held_out)
        if f"cold_{phase}" in dataset.parts:
            self.cold_positives = _histories(dataset, f"cold_{phase}")
            self.cold_items = dataset.cold_items(f"cold_{phase}")

    def __call__(self, recommender: Recommender, features: Features, world: World) -> Metrics:
        """Evaluate; each rank takes a range of the users, every user exactly once.

        Collective: every rank must call this.

        Args:
            recommender: The model.
            features: Features of all items, [I, d_m], on the model's device.
            world: This rank and its peers.

        Returns:
            Metrics of the phase, of its cold part too where there is one and the recommender reads features.
        """
        number = self.dataset.num_users
        own = (number * world.rank // world.size, number * (world.rank + 1) // world.size)
        metrics: Metrics = {}
        for part, found in self.per_user(recommender, features, own).items():
            sums = {name: float(values_N.sum()) for name, values_N in found.values.items()}
            metrics[part] = _mean(sums, len(found.users), world)
        return metrics

    def per_user(
        self, recommender: Recommender, features: Features, user_range: tuple[int, int] | None = None
    ) -> dict[str, UserMetrics]:
        """Evaluate and keep each user's metrics, as tests of significance need them.

        Args:
            recommender: The model.
            features: Features of all items, [I, d_m], on the model's device.
            user_range: First user and one past the last; by default all.

        Returns:
            Part of the phase to the metrics of its users.
        """
        return {part: metrics_of(ranked) for part, ranked in self.ranked(recommender, features, user_range).items()}

    @torch.no_grad()
    def ranked(
        self, recommender: Recommender, features: Features, user_range: tuple[int, int] | None = None
    ) -> dict[str, Ranked]:
        """Rank every positive of the phase.

        Args:
            recommender: The model.
            features: Features of all items, [I, d_m], on the model's device.
            user_range: First user and one past the last; by default all.

        Returns:
            Part of the phase to its positives and their ranks.
        """
        training, device = recommender.training, next(recommender.parameters()).device
        recommender.eval()
        warm = scorer_of(recommender, features, recent_items(recommender, self.dataset, self.known_parts, device))
        found: dict[str, Ranked] = {}
        if self.positives is not None:
            found[self.phase] = rank_positives(
                warm, self.positives, self.seen, candidates=self.warm_items, user_range=user_range
            )
        if self.cold_items is not None and recommender.multimodal:
            chosen = torch.from_numpy(self.cold_items).to(device)
            items_CD = recommender.cold_items(
                {modality: features[modality][chosen] for modality in recommender.modalities}
            )
            items_ID = items_CD.new_zeros(self.dataset.num_items, items_CD.shape[1]).index_copy(0, chosen, items_CD)
            found[f"cold_{self.phase}"] = rank_positives(
                replace(warm, items=items_ID),
                self.cold_positives,
                None,
                candidates=self.cold_items,
                user_range=user_range,
            )
        recommender.train(training)
        return found


def evaluate_run(config: EvaluateConfig) -> None:
    """Evaluate a finished run and write its `metrics.json` anew (`ptmrec evaluate`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: No finished run, or data or features that are not those it was made from.
    """
    run = load_run(config.run, config)
    world = join_world(config.device)
    recommender = run.recommender.to(world.device)
    features = {modality: table.to(world.device) for modality, table in run.features.items()}
    metrics = evaluate_phases(run.dataset, recommender, features, world, run.record.mask_validation_at_test)
    if world.is_first:
        write_atomically(config.run / "metrics.json", json.dumps(metrics, indent=1))
        print_metrics(metrics)
        if run.record.stage2 is not None:
            print_comparison(stages_of(config.run, run.record))


def evaluate_phases(
    dataset: Dataset, recommender: Recommender, features: Features, world: World, mask_validation: bool
) -> Metrics:
    """Evaluate validation and, where the data set shows it, test, once training has ended.

    Collective: every rank must call this.

    Args:
        dataset: The packed data set.
        recommender: The model.
        features: Features of all items, on the model's device.
        world: This rank and its peers.
        mask_validation: Leave validation positives out of the ranking at test time.

    Returns:
        Metrics of every part.
    """
    found: Metrics = {}
    for phase in ("validation", "test"):
        found |= Evaluator(dataset, phase, mask_validation)(recommender, features, world)
    return {part: found[part] for part in PARTS if part in found}


def print_metrics(metrics: Metrics) -> None:
    """Print metrics as a table.

    Args:
        metrics: Part to metric to value.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("part", *SHOWN):
        table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
    for part, values in metrics.items():
        table.add_row(part, *(f"{values[name]:.4f}" for name in SHOWN))
    Console().print(table)


def stages_of(folder: Path, record: RunRecord) -> dict[str, Metrics]:
    """Read the present metrics of a refit and of the runs before it.

    Args:
        folder: Run folder of a refit.
        record: Its lineage.

    Returns:
        `stage 1`, `stage 2` (of joint training `joint`) and `refit` to metrics; without runs that are no longer there.
    """
    before = {"joint" if record.stage1 is None else "stage 2": record.stage2, "stage 1": record.stage1}
    folders = {name: Path(made["path"]) for name, made in reversed(before.items()) if made is not None}
    there = {name: path for name, path in folders.items() if (path / "metrics.json").is_file()}
    return {name: read_metrics(path) for name, path in {**there, "refit": folder}.items()}


def print_comparison(runs: Mapping[str, Metrics]) -> None:
    """Print metrics of several runs side by side, a column for each part.

    Args:
        runs: Name of a run to its metrics.
    """
    from rich.console import Console
    from rich.table import Table

    parts = [part for part in PARTS if any(part in metrics for metrics in runs.values())]
    table = Table()
    for heading in ("metric", "run", *parts):
        table.add_column(heading, justify="right" if heading in parts else "left", no_wrap=True)
    for name in (SELECT, "ndcg@20"):
        for run, metrics in runs.items():
            values = (metrics.get(part, {}).get(name) for part in parts)
            table.add_row(name, run, *("" if value is None else f"{value:.4f}" for value in values))
        table.add_section()
    Console().print(table)


def _mean(sums: dict[str, float], count: int, world: World) -> dict[str, float]:
    """Sums and counts are added over the ranks before they are divided: never a mean of means."""
    total = sum_over_ranks(torch.tensor([*sums.values(), count], dtype=torch.float64, device=world.device))
    *values, number = total.tolist()
    return {name: value / max(number, 1) for name, value in zip(sums, values, strict=True)}


def _histories(dataset: Dataset, *parts: str) -> Histories:
    found = [dataset.interactions(part) for part in parts]
    users_E, items_E = (np.concatenate([getattr(part, side) for part in found]) for side in ("users", "items"))
    return Histories(Interactions(users_E, items_E), dataset.num_users, dataset.num_items)
