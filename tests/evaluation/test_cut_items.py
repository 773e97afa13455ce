"""Rankings by ranks that each hold some of the items are those of a process that holds all."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.data.manifest import Members
from ptmrec_dist.distributed import join_world
from ptmrec_dist.distributed.rows import RowTable
from ptmrec_dist.evaluation import scoring
from ptmrec_dist.evaluation.ranking import Ranked
from ptmrec_dist.evaluation.scoring import Scorer, table_scorer
from ptmrec_dist.evaluation.tasks import Task
from tests.ranks import run_on_ranks

USERS, ITEMS, WIDTH, CUTOFF = 90, 200, 3, 50
# All; some of each rank; of one rank alone, so that others have none; a source's items and users.
CASES: dict[str, tuple[np.ndarray | None, Members | None]] = {
    "all": (None, None),
    "some": (np.arange(0, ITEMS, 3), None),
    "the first": (np.arange(40), None),
    "a source": (None, Members(users=range(20, 70), items=range(100, 180))),
}


def _histories(seed: int, items: np.ndarray) -> Histories:
    rng = np.random.default_rng(seed)
    pairs = np.unique(rng.integers(0, [USERS, len(items)], (400, 2)), axis=0)
    return Histories(Interactions(pairs[:, 0], items[pairs[:, 1]]), USERS, ITEMS)


def _task(scorer: Scorer, case: str) -> Task:
    """Some positives are left out of the ranking, for they are among what was seen."""
    candidates, members = CASES[case]
    items = np.arange(ITEMS) if candidates is None else candidates
    items = items if members is None else np.array(members.items)
    task = Task(scorer, _histories(1, items), _histories(2, np.arange(ITEMS)), candidates, range(USERS))
    return task if members is None else task.of(members)


def _vectors(rows: int, seed: int) -> torch.Tensor:
    """Small whole numbers: scores are exact in any order of summation, and many are equal."""
    return torch.randint(-2, 3, (rows, WIDTH), generator=torch.Generator().manual_seed(seed)).float()


def _ranked_by_a_rank(case: str) -> dict[str, Any]:
    scoring._BLOCK_SCORES["cpu"] = 1  # several blocks of users
    world = join_world("cpu")
    users, items = RowTable(USERS, WIDTH, world), RowTable(ITEMS, WIDTH, world)
    for table, seed in ((users, 3), (items, 4)):
        table.weight.data.copy_(_vectors(table.num_embeddings, seed)[table.own])
    scorer = Scorer(lambda users_B: users(torch.from_numpy(users_B)), items.weight.detach(), cut=items)
    own = (USERS * world.rank // world.size, USERS * (world.rank + 1) // world.size)
    return {"own": own, **vars(_task(scorer, case).rank(own))}


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_hold_some_items_each_find_the_ranks_of_all(case: str) -> None:
    task = _task(table_scorer(_vectors(USERS, 3), _vectors(ITEMS, 4)), case)
    whole = task.rank()
    assert (whole.ranks == CUTOFF + 1).any()
    assert len(np.unique(whole.ranks)) > 10
    found = run_on_ranks(3, _ranked_by_a_rank, case)
    for item in fields(Ranked):
        joined = np.concatenate([part[item.name] for part in found])
        np.testing.assert_array_equal(joined, getattr(whole, item.name), err_msg=item.name)
    for part in found:
        np.testing.assert_array_equal(part["ranks"], task.rank(part["own"]).ranks)
