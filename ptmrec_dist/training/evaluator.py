"""Evaluation of a recommender on a packed data set.

Warm protocol: every item that was there in training is ranked for every user. Cold protocol: the held-out items are ranked
among themselves, scored through the maps of eq. 12, since they have no ID representation. In a merged data set each user's
ranking has the items of the user's source alone.

Legend: I items, C cold items, D width.
"""

import functools
import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.data.manifest import PARTS
from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.evaluation.ranking import Ranked, UserMetrics, metrics_of
from ptmrec_dist.evaluation.scoring import recent_items, scorer_of
from ptmrec_dist.evaluation.tasks import Task, with_all_sources
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.records import RunRecord

_log = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]
"""Part (`validation`, `test`, `cold_validation`, `cold_test`; in a merged data set also `validation.SOURCE`, ...) to metric
(`recall@20`, ...) to value."""


@dataclass(frozen=True)
class Masking:
    """Items that are left out of a user's ranking, because the user has interacted with them before."""

    history: bool = True
    """Those of the training part; in the test phase those of the validation part too, for a recommender that reads histories:
    they are part of them."""
    validation: bool = False
    """Those of the validation part, in the test phase of every recommender."""


class Evaluator:
    """Scores one phase of a data set; a validation evaluator has no way to reach the test split.

    A part without interactions has no metrics. Models that read histories get those of the training part, in the test phase
    those of the validation part too.

    Args:
        dataset: The packed data set.
        phase: `validation` or `test`.
        masking: Items that are left out of the ranking.
        most_users: Largest number of users with positives; of more, as many are sampled, the same for the same data. The
            standard error of their mean Recall@20 is at most 0.5 / sqrt(most_users). By default all.
    """

    def __init__(
        self, dataset: Dataset, phase: str, masking: Masking = Masking(), most_users: int | None = None
    ) -> None:
        self.phase, self.dataset, self.masking = phase, dataset, masking
        self.known_parts = (
            ("train",)
            if phase == "validation"
            else tuple(part for part in ("train", "validation") if part in dataset.parts)
        )
        self.positives = sampled_histories(dataset, phase, most_users=most_users) if phase in dataset.parts else None
        self.cold_items: np.ndarray | None = None
        self.warm_items: np.ndarray | None = None
        held_out = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")])
        if len(held_out):
            self.warm_items = np.setdiff1d(np.arange(dataset.num_items), held_out)
        if f"cold_{phase}" in dataset.parts:
            self.cold_positives = sampled_histories(dataset, f"cold_{phase}", most_users=most_users)
            self.cold_items = dataset.cold_items(f"cold_{phase}")

    def seen(self, recommender: Recommender) -> Histories | None:
        """Return the items that are left out of the ranking for each user.

        Args:
            recommender: The model.

        Returns:
            The items, or None for none.
        """
        parts = {"train"} if self.masking.history else set()
        if (self.masking.history and recommender.history_length) or self.masking.validation:
            parts |= set(self.known_parts) - {"train"}
        return self._histories_of(tuple(part for part in self.known_parts if part in parts))

    def __call__(self, recommender: Recommender, features: Features, world: World) -> Metrics:
        """Evaluate; each rank takes a range of the users, every user exactly once.

        Collective: every rank must call this.

        Args:
            recommender: The model.
            features: Features of all items, [I, d_m], on the model's device.
            world: This rank and its peers.

        Returns:
            Metrics of the phase, of its cold part too where there is one and the recommender reads features; in a merged data
            set of both for each source, too.
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
        training = recommender.training
        recommender.eval()
        found = {part: task.rank(user_range) for part, task in self.tasks(recommender, features).items()}
        recommender.train(training)
        return found if not self.dataset.sources else with_all_sources(found)

    @torch.no_grad()
    def tasks(self, recommender: Recommender, features: Features) -> dict[str, Task]:
        """Return what is ranked in each part of the phase.

        Args:
            recommender: The model, in evaluation mode.
            features: Features of all items, [I, d_m], on the model's device.

        Returns:
            Part to what is ranked, and for whom; in a merged data set the parts of each source.
        """
        device = next(recommender.parameters()).device
        warm = scorer_of(recommender, features, recent_items(recommender, self.dataset, self.known_parts, device))
        found: dict[str, Task] = {}
        every = range(self.dataset.num_users)
        if self.positives is not None:
            found[self.phase] = Task(warm, self.positives, self.seen(recommender), self.warm_items, every)
        if self.cold_items is not None and recommender.multimodal:
            here = warm.own(self.cold_items)
            assert here is not None
            chosen = torch.from_numpy(here - warm.first).to(device)
            items_CD = recommender.cold_items({name: table[chosen] for name, table in features.items()})
            items_ID = items_CD.new_zeros(len(warm.items), items_CD.shape[1]).index_copy(0, chosen, items_CD)
            cold = replace(warm, items=items_ID)
            found[f"cold_{self.phase}"] = Task(cold, self.cold_positives, None, self.cold_items, every)
        if not self.dataset.sources:
            return found
        own = {
            f"{part}.{name}": task.of(members)
            for part, task in found.items()
            for name, members in self.dataset.sources.items()
        }
        return {part: task for part, task in own.items() if not task.is_empty}

    def warn_of_repeats(self, recommender: Recommender) -> None:
        """Warn of positives that are left out of the ranking because the user has interacted with them before: each is a miss.

        Args:
            recommender: The model.
        """
        seen = self.seen(recommender)
        if seen is None or self.positives is None:
            return
        known, wanted = (pairs.users * self.dataset.num_items + pairs.items for pairs in (seen, self.positives))
        repeated = np.intersect1d(known, wanted, assume_unique=True)
        if len(repeated):
            _log.warning(
                "%d of %d %s positives, of %d users, were taken before and are left out of the ranking: they count as misses; "
                "--mask_history false ranks them",
                len(repeated),
                len(self.positives.items),
                self.phase,
                len(np.unique(repeated // self.dataset.num_items)),
            )

    @functools.cache  # noqa: B019  an evaluator lives as long as its run
    def _histories_of(self, parts: tuple[str, ...]) -> Histories | None:
        return sampled_histories(self.dataset, *parts) if parts else None


def masking_of(record: RunRecord) -> Masking:
    """Return what a run leaves out of the ranking.

    Args:
        record: Its lineage.

    Returns:
        What is left out.
    """
    return Masking(record.mask_history, record.mask_validation_at_test)


def evaluate_phases(
    dataset: Dataset,
    recommender: Recommender,
    features: Features,
    world: World,
    masking: Masking,
    kind: type[Evaluator] = Evaluator,
) -> Metrics:
    """Evaluate validation and, where the data set shows it, test, once training has ended.

    Collective: every rank must call this.

    Args:
        dataset: The packed data set.
        recommender: The model.
        features: Features of all items, on the model's device.
        world: This rank and its peers.
        masking: Items that are left out of the ranking.
        kind: How the items of each phase are ranked; by default by the model.

    Returns:
        Metrics of every part.
    """
    found: Metrics = {}
    for phase in ("validation", "test"):
        evaluator = kind(dataset, phase, masking)
        found |= evaluator(recommender, features, world)
        if world.is_first:
            evaluator.warn_of_repeats(recommender)
    return {part: found[part] for whole in PARTS for part in found if part.partition(".")[0] == whole}


def _mean(sums: dict[str, float], count: int, world: World) -> dict[str, float]:
    """Sums and counts are added over the ranks before they are divided: never a mean of means."""
    total = sum_over_ranks(torch.tensor([*sums.values(), count], dtype=torch.float64, device=world.device))
    *values, number = total.tolist()
    return {name: value / max(number, 1) for name, value in zip(sums, values, strict=True)}


def sampled_histories(dataset: Dataset, part: str, *others: str, most_users: int | None = None) -> Histories:
    """Read the items of the users of some parts, or of a sample of them.

    Args:
        dataset: The packed data set.
        part: Part of the data set.
        *others: Parts whose interactions are added.
        most_users: Largest number of users; of more, as many are sampled, the same for the same data. By default all.

    Returns:
        The items of each user.
    """
    found = [dataset.interactions(name) for name in (part, *others)]
    users_E, items_E = (np.concatenate([getattr(pairs, side) for pairs in found]) for side in ("users", "items"))
    users = np.unique(users_E)
    if most_users is not None and len(users) > most_users:
        sampled = np.random.default_rng(0).choice(users, most_users, replace=False)
        kept_E = np.isin(users_E, sampled)
        users_E, items_E = users_E[kept_E], items_E[kept_E]
    return Histories(Interactions(users_E, items_E), dataset.num_users, dataset.num_items)
