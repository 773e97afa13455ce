from copy import deepcopy

import numpy as np
import pytest
import torch

from ptmrec_dist.recommenders.ridge import STRENGTHS, Ridge
from tests.recommenders.conftest import Toy


def augmented_least_squares(table: np.ndarray, targets: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with a free intercept as ordinary least squares: one more row for each penalised weight."""
    width = table.shape[1]
    rows = np.hstack([table, np.ones((len(table), 1))])
    pulls = np.hstack([np.sqrt(penalty) * np.eye(width), np.zeros((width, 1))])
    stacked = np.vstack([rows, pulls]), np.vstack([targets, np.zeros((width, targets.shape[1]))])
    solved = np.linalg.lstsq(*stacked)[0]
    return solved[:-1], solved[-1]


def penalty_of(table: np.ndarray, strength: float) -> float:
    return float(strength * ((table - table.mean(axis=0)) ** 2).sum() / table.shape[1])


def left_out_cosine(table: np.ndarray, targets: np.ndarray, strength: float) -> float:
    """Refit without each item, predict it, and compare directions as seen from the mean of the targets."""
    penalty, centre, cosines = penalty_of(table, strength), targets.mean(axis=0), []
    for item in range(len(table)):
        others = np.arange(len(table)) != item
        weights, intercept = augmented_least_squares(table[others], targets[others], penalty)
        predicted, true = table[item] @ weights + intercept - centre, targets[item] - centre
        cosines.append(predicted @ true / np.linalg.norm(predicted) / np.linalg.norm(true))
    return float(np.mean(cosines))


def best_strength(table: np.ndarray, targets: np.ndarray) -> float:
    return max(STRENGTHS, key=lambda strength: left_out_cosine(table, targets, strength))


@pytest.mark.parametrize("strength", [0.003, 0.3])
def test_weights_are_those_of_a_ridge_regression_with_a_free_intercept(strength: float) -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(2, 1, (9, 3)), rng.normal(5, 1, (9, 4))
    tensors = [torch.tensor(table, dtype=torch.float32) for table in (inputs, targets)]
    found = Ridge(tensors[0], strengths=(strength,)).weights(*tensors)
    expected, _ = augmented_least_squares(inputs, targets, penalty_of(inputs, strength))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_strength_is_the_one_that_predicts_left_out_rows_best() -> None:
    rng = np.random.default_rng(0)
    inputs, chosen = rng.normal(2, 1, (30, 12)), []
    ridge = Ridge(torch.tensor(inputs, dtype=torch.float32))
    for noise in (0.01, 0.2, 0.5, 1, 2):
        targets = inputs @ rng.normal(0, 1, (12, 4)) + noise * rng.normal(3, 4, (30, 4))
        tensors = [torch.tensor(table, dtype=torch.float32) for table in (inputs, targets)]
        chosen.append(best_strength(inputs, targets))
        expected, _ = augmented_least_squares(inputs, targets, penalty_of(inputs, chosen[-1]))
        np.testing.assert_allclose(ridge.weights(*tensors).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert len(set(chosen)) > 2


def test_inputs_that_are_all_the_same_predict_nothing() -> None:
    inputs = torch.ones(5, 3)
    assert (Ridge(inputs).weights(inputs, torch.randn(5, 2)) == 0).all()


@pytest.mark.parametrize("name", ["vbpr", "mgcn", "smore", "slmrec", "mmgcl"])
def test_recommenders_fit_each_projection_to_items_with_interactions(name: str, toy: Toy) -> None:
    model = toy.build(name, dim=4).train()
    before = toy.vectors(model)
    model.fit_cold_map(toy.features)
    targets = before[1][: toy.cold_items[0]].detach()
    for modality, table in toy.features.items():
        inputs = table[: toy.cold_items[0]]
        found = model.projections[modality].weight
        assert found.abs().sum() > 0
        torch.testing.assert_close(found.T, Ridge(inputs).weights(inputs, targets).float())
    assert model.training
    torch.testing.assert_close(toy.vectors(model), before)


def test_maps_are_fitted_to_the_features_and_vectors_of_now(toy: Toy) -> None:
    model, features = toy.build("vbpr", dim=4), dict(toy.features)

    def assert_fitted() -> None:
        model.fit_cold_map(features)
        twin = deepcopy(model)
        for weight in twin.projections.parameters():
            weight.data.zero_()
        twin.fit_cold_map({modality: table.clone() for modality, table in features.items()})
        torch.testing.assert_close(
            dict(model.projections.named_parameters()), dict(twin.projections.named_parameters())
        )

    assert_fitted()
    model.item_embeddings.weight.data.normal_()
    assert_fitted()
    features["image"].mul_(torch.linspace(0.5, 2, features["image"].shape[1]))  # in place, as training of features does
    assert_fitted()
    features["image"] = features["image"].flip(1)
    assert_fitted()
