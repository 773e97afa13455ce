import math

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders.losses import penalty_weight
from tests.recommenders.conftest import Toy


def test_loss_terms_equal_the_formula_row_by_row(toy: Toy) -> None:
    model = toy.build("bpr", dim=3, reg_weight=0.2)
    users, items = (table.tolist() for table in toy.vectors(model))
    terms = toy.loss(model)
    assert set(terms) == {"bpr", "l2"}
    for row, (u, p, n) in enumerate(zip(toy.users.tolist(), toy.positives.tolist(), toy.negatives.tolist())):
        margin = sum(users[u][d] * (items[p][d] - items[n][d]) for d in range(3))
        squares = sum(users[u][d] ** 2 + items[p][d] ** 2 + items[n][d] ** 2 for d in range(3))
        assert terms["bpr"][row].item() == pytest.approx(-math.log(1 / (1 + math.exp(-margin))), rel=1e-5)
        assert terms["l2"][row].item() == pytest.approx(0.2 * squares / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("bpr", 1), ("vbpr", 1), ("slmrec", 10)],
)
def test_the_penalty_of_each_interaction_is_chosen_by_the_data_by_default(toy: Toy, name: str, factor: int) -> None:
    expected = factor * penalty_weight(None, toy.train)
    given, chosen = toy.loss(toy.build(name, reg_weight=expected)), toy.loss(toy.build(name))
    torch.testing.assert_close(chosen["l2"], given["l2"])


@pytest.mark.parametrize(("users", "weight"), [([0] * 30 + [2] * 10, 1 / 20), ([0, 0, 0, 2], 0.1), ([], 0.0)])
def test_users_with_more_interactions_are_penalised_less_in_each(users: list[int], weight: float) -> None:
    train = Interactions(np.array(users, dtype=np.int64), np.zeros(len(users), dtype=np.int64))
    assert penalty_weight(None, train) == pytest.approx(weight)
    assert penalty_weight(0.3, train) == 0.3


def test_id_only_recommenders_refuse_what_needs_features(toy: Toy) -> None:
    for name in ("bpr", "lightgcn", "buir"):
        model = toy.build(name)
        with pytest.raises(UserError, match="IDs only"):
            model.cold_map()
        with pytest.raises(UserError, match="IDs only"):
            model.cold_items(toy.features)
