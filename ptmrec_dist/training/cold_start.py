"""Metrics of a recommender on cold rows: all items are ranked after every prefix that a cold item follows.

Shape suffixes: R rows, B rows of a block, I items, D width.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.histories import Histories, RecentItems
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.cold_rows import ROWS, ColdRows, cold_rows
from ptmrec_dist.evaluation.ranking import Ranked, metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import Scorer, dot_product
from ptmrec_dist.recommenders.base import Queries, Recommender, Tables
from ptmrec_dist.recommenders.rows import Features
from ptmrec_dist.training.evaluator import Metrics

_BLOCK_ROWS = 8192
"""Rows whose prefixes are in memory at once."""

_Vectors = Callable[[np.ndarray], Tensor]
"""Rows, int64 [B], to the vectors of their users, float32 [B, D]."""


def cold_start(
    dataset: Dataset, recommender: Recommender, features: Features, below: int, mask: bool = True
) -> Metrics:
    """Rank all items after every prefix that a cold item follows.

    Items without training interactions are scored by their content, where the recommender reads it.

    Args:
        dataset: Packed data set, with times.
        recommender: The model.
        features: Features of all items, [I, d_m], on the model's device.
        below: An item is cold that has fewer training interactions.
        mask: Leave the items of the prefix out of the ranking.

    Returns:
        `all`, `held_out` and `new`, each to the mean of every metric over its rows, and `rows`, their number; a set without
        rows is left out.

    Raises:
        UserError: Interactions without times, or no cold row.
    """
    rows = cold_rows(dataset, below)
    if not len(rows.positions):
        raise UserError(
            f"cold_below: got {below}, but no item with fewer training interactions follows another one in {dataset.folder}; "
            "expected a larger number"
        )
    values = metrics_of(_ranked(dataset, recommender, features, rows, mask)).values
    found: Metrics = {}
    for name in ROWS:
        chosen_R = rows.of(name)
        if chosen_R.any():
            means = {metric: float(values_R[chosen_R].mean()) for metric, values_R in values.items()}
            found[name] = {"rows": float(chosen_R.sum()), **means}
    return found


@torch.no_grad()
def _ranked(dataset: Dataset, recommender: Recommender, features: Features, rows: ColdRows, mask: bool) -> Ranked:
    """Ranks of the targets; what `Ranked` calls users are rows."""
    training = recommender.training
    recommender.eval()
    tables = recommender.tables(features)
    items_ID = _items(dataset, recommender, features, tables)
    vectors = _vectors_after(rows, recommender, tables, dataset.num_users, items_ID.device)
    score = recommender.score if recommender.has_own_score else dot_product
    ranks = []
    for rows_B, candidates in _blocks(dataset, rows):
        scorer = Scorer(_of_block(vectors, rows_B), items_ID, score)
        targets = Interactions(np.arange(len(rows_B)), rows.targets[rows_B])
        positives = Histories(targets, len(rows_B), dataset.num_items)
        seen = rows.prefixes(rows_B, dataset.num_items) if mask else None
        ranks.append(rank_positives(scorer, positives, seen, candidates=candidates).ranks)
    recommender.train(training)
    return Ranked(np.arange(len(rows.positions)), rows.targets, np.concatenate(ranks))


def _items(dataset: Dataset, recommender: Recommender, features: Features, tables: Tables) -> Tensor:
    """Vectors of all items; those without training interactions by their content."""
    items_ID = recommender.items(features, tables)
    trained = np.bincount(dataset.interactions("train").items, minlength=dataset.num_items) > 0
    if recommender.multimodal and not trained.all():
        untrained = torch.from_numpy(np.flatnonzero(~trained)).to(items_ID.device)
        cold_CD = recommender.cold_items({name: table[untrained] for name, table in features.items()})
        items_ID = items_ID.index_copy(0, untrained, cold_CD)
    return items_ID


def _vectors_after(
    rows: ColdRows, recommender: Recommender, tables: Tables, num_users: int, device: torch.device
) -> _Vectors:
    """A function from rows to vectors of their users: after the prefix, where a recommender reads histories."""
    recent = RecentItems(rows.sequences, num_users, recommender.history_length or 1, device)

    def vectors(rows_B: np.ndarray) -> Tensor:
        histories = recent.before(torch.from_numpy(rows.positions[rows_B]).to(device))
        users = torch.from_numpy(rows.users[rows_B]).to(device)
        return recommender.users(Queries(users, histories if recommender.history_length else None), tables)

    return vectors


def _of_block(vectors: _Vectors, rows_B: np.ndarray) -> _Vectors:
    """The same for rows that are numbered from 0."""
    return lambda chosen: vectors(rows_B[chosen])


def _blocks(dataset: Dataset, rows: ColdRows) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Some rows at a time, and the items that are ranked for them: in a merged data set those of the users' source."""
    groups: list[tuple[range, np.ndarray | None]] = [(range(dataset.num_users), None)]
    if dataset.sources:
        groups = [(one.users, np.arange(one.items.start, one.items.stop)) for one in dataset.sources.values()]
    for users, candidates in groups:
        first, end = np.searchsorted(rows.users, [users.start, users.stop])
        for start in range(first, end, _BLOCK_ROWS):
            yield np.arange(start, min(start + _BLOCK_ROWS, end)), candidates
