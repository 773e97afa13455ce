"""The objective of stage 2 against loops over rows, and its negatives."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ptmrec_dist.recommenders.base import Batch
from tests.conftest import Project
from tests.training.tuner_world import MODALITIES, Case, make_batch, make_tuner
from tests.vectors import all_vectors


def _trained_items(project: Project) -> list[int]:
    _, dataset = make_tuner(project.shards, project.features, project.clip, Case())
    return np.unique(dataset.interactions("train").items).tolist()[:8]


@pytest.mark.parametrize("mask_known", [False, True])
def test_objective_equals_loops_over_rows(tiny_project: Project, mask_known: bool) -> None:
    case = Case(mask_known=mask_known)
    tuner, dataset = make_tuner(tiny_project.shards, tiny_project.features, tiny_project.clip, case)
    items = _trained_items(tiny_project)
    batch = make_batch(tuner, dataset, items)
    train = dataset.interactions("train")
    known = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    seen: dict[str, Tensor] = {}
    loss = tuner.recommender.loss

    def spy(rows: Batch, *rest: Any) -> dict[str, Tensor]:
        seen.update(users=rows.users, positives=rows.positives, negatives=rows.negatives)
        return loss(rows, *rest)

    tuner.recommender.loss = spy  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        losses = tuner(batch, step=2)
        fresh = tuner.encoder.encode(batch.content.images, batch.content.texts)
        model, rows = tuner.recommender, list(zip(seen["users"].tolist(), seen["positives"].tolist(), strict=True))
        for (user, _), negative in zip(rows, seen["negatives"].tolist(), strict=True):
            assert negative in items
            assert (user, negative) not in known

        place = {item: column for column, item in enumerate(items)}
        projected = {m: fresh[m] @ model.cold_map()[m][0].T for m in MODALITIES}
        modal = {item: sum(model.maps[m](fresh[m][place[item]]) for m in MODALITIES) for item in items}
        own = {item: torch.cat([model.item_embeddings.weight[item], modal[item]]) for item in items}
        users = model.user_embeddings.weight
        bpr = [
            -math.log(torch.sigmoid(users[u] @ own[p] - users[u] @ own[n]))
            for (u, p), n in zip(rows, seen["negatives"].tolist(), strict=True)
        ]
        assert losses["bpr"].item() == pytest.approx(np.mean(bpr), rel=1e-4)

        before = all_vectors(model, tuner.features, dataset.num_users)  # no step was taken: the teacher is the model
        total = 0.0
        for user, positive in rows:
            kept = [i for i in items if not mask_known or i == positive or (user, i) not in known]
            teacher = torch.tensor([before[0][user] @ before[1][i] for i in kept]).div(1.5).softmax(0)
            for m in MODALITIES:
                student = torch.tensor([users[user] @ projected[m][place[i]] for i in kept]).div(1.5).softmax(0)
                total += sum(p * math.log(p / q) for p, q in zip(teacher.tolist(), student.tolist(), strict=True))
        assert losses["kt"].item() == pytest.approx(0.7 * total / len(rows), rel=1e-3)


def test_negatives_do_not_depend_on_the_ranks(tiny_project: Project) -> None:
    tuner, dataset = make_tuner(tiny_project.shards, tiny_project.features, tiny_project.clip, Case())
    items = torch.tensor(_trained_items(tiny_project))
    batch = make_batch(tuner, dataset, items.tolist())
    positives = items[batch.columns]
    everything = tuner._negatives(batch.users, positives, items, torch.ones(8, dtype=torch.bool), 4)[0]
    shuffled = torch.tensor([7, 2, 5, 0, 1, 3, 4, 6])
    half = slice(0, len(positives) // 2)
    again = tuner._negatives(batch.users[half], positives[half], items[shuffled], torch.ones(8, dtype=torch.bool), 4)[0]
    assert torch.equal(again, everything[half])


class _Shapes(TorchDispatchMode):
    """Shapes of all tensors that are computed, also in a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {
            tuple(part.shape) for part in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(part)
        }
        return result


@pytest.mark.parametrize("name", ["vbpr", "freedom", "mgcn"])
@pytest.mark.parametrize("live_teacher", [False, True])
def test_a_step_makes_nothing_as_large_as_a_feature_table_unless_features_are_propagated(
    tiny_project: Project, name: str, live_teacher: bool
) -> None:
    tuner, dataset = make_tuner(
        tiny_project.shards, tiny_project.features, tiny_project.clip, Case(name, live_teacher=live_teacher)
    )
    batch = make_batch(tuner, dataset, _trained_items(tiny_project))
    with _Shapes() as shapes:
        torch.stack(list(tuner(batch, step=2).values())).sum().backward()
    made = {tuple(table.shape) for table in tuner.features.values()} & shapes.seen
    assert bool(made) == tuner.recommender.propagates_features
    whole = (dataset.num_items, 16)  # item vectors of VBPR, which a live teacher needs of the batch alone
    assert name != "vbpr" or whole not in shapes.seen
