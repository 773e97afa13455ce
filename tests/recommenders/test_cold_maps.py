"""No map that scores cold items may be left both untrained and unfitted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config.recommenders import RECOMMENDERS, recommender_config
from ptmrec_dist.recommenders.base import Recommender
from tests.recommenders.conftest import Toy, is_sequential

CASES = [(name, {}) for name in RECOMMENDERS] + [("vbpr", {"reg_weight": 0.0})]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_whatever_scores_cold_items_is_trained_by_a_term_or_fitted(
    name: str, settings: dict[str, float], toy: Toy
) -> None:
    small = {"dim": 4} if hasattr(recommender_config(name), "dim") else {}  # wide ones saturate with random weights
    model = toy.build(name, **(small | settings))
    if not model.multimodal:
        pytest.skip("it knows items by their IDs only")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()

    def parameters_behind(value: Tensor) -> set[str]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return {name for name, gradient in zip(names, found, strict=True) if gradient.any()}

    users, _ = toy.vectors(model)
    scoring = parameters_behind(model.score(users, toy.cold_vectors(model)).square().sum())
    trained = parameters_behind(_objective(name, model, toy))
    before = {key: value.clone() for key, value in model.named_parameters()}
    model.fit_cold_map(toy.features)
    fitted = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert scoring
    assert scoring <= trained | fitted


def _objective(name: str, model: Recommender, toy: Toy) -> Tensor:
    """Sum of the terms; of a sequence recommender, that of pairs of items, as every loss of it compares scores."""
    if not is_sequential(name):
        return torch.stack(list(toy.loss(model).values())).sum()
    tables = model.tables(toy.features)
    scores = model.score(model.users(toy.queries(model, toy.users), tables), model.items(toy.features, tables))
    positives, negatives = (scores.gather(1, items[:, None]) for items in (toy.positives, toy.negatives))
    return (F.softplus(-positives) + F.softplus(negatives)).sum()
