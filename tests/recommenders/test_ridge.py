import numpy as np
import pytest
import torch
from torch import nn

from ptmrec_dist.recommenders import ridge
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


def test_each_map_is_its_own_ridge_regression_with_a_free_intercept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "STRENGTHS", (0.3,))
    rng = np.random.default_rng(0)
    features = {
        name: torch.tensor(rng.normal(2, 1, (9, width)), dtype=torch.float32) for name, width in (("a", 3), ("b", 2))
    }
    items, targets = torch.tensor([0, 1, 2, 4, 5, 7, 8]), torch.tensor(rng.normal(5, 1, (7, 4)), dtype=torch.float32)
    maps = nn.ModuleDict({name: nn.Linear(table.shape[1], 4, bias=False) for name, table in features.items()})
    ridge.fit_maps(maps, features, items, targets)
    for name, table in features.items():
        inputs = table[items].numpy().astype(float)
        expected, _ = augmented_least_squares(inputs, targets.numpy().astype(float), penalty_of(inputs, 0.3))
        np.testing.assert_allclose(maps[name].weight.detach().numpy().T, expected, rtol=1e-4, atol=1e-5)


def test_the_strength_is_the_one_that_predicts_left_out_items_best() -> None:
    rng = np.random.default_rng(0)
    chosen = []
    for noise in (0.01, 0.5, 2, 8):
        inputs = rng.normal(2, 1, (30, 12))
        targets = inputs @ rng.normal(0, 1, (12, 4)) + noise * rng.normal(3, 4, (30, 4))
        chosen.append(ridge.best_strength(*(torch.tensor(table, dtype=torch.float32) for table in (inputs, targets))))
        assert chosen[-1] == max(ridge.STRENGTHS, key=lambda strength: left_out_cosine(inputs, targets, strength))
    assert len(set(chosen)) > 2


def test_features_that_are_all_the_same_predict_nothing() -> None:
    maps = nn.ModuleDict({"image": nn.Linear(3, 2, bias=False)})
    ridge.fit_maps(maps, {"image": torch.ones(5, 3)}, torch.arange(5), torch.randn(5, 2))
    assert (maps["image"].weight == 0).all()


@pytest.mark.parametrize("name", ["vbpr", "mgcn", "smore", "slmrec", "mmgcl"])
def test_recommenders_fit_their_projections_to_items_with_interactions(name: str, toy: Toy) -> None:
    model = toy.build(name, dim=4).train()
    before = toy.vectors(model)
    model.fit_cold_map(toy.features)
    maps, targets = model.projections, before[1][: toy.cold_items[0]].detach()
    widths = {modality: table.shape[1] for modality, table in toy.features.items()}
    expected = nn.ModuleDict({name: nn.Linear(width, targets.shape[1], bias=False) for name, width in widths.items()})
    ridge.fit_maps(expected, toy.features, torch.arange(toy.cold_items[0]), targets)
    for modality in toy.features:
        assert maps[modality].weight.abs().sum() > 0
        torch.testing.assert_close(maps[modality].weight, expected[modality].weight)
    assert model.training
    torch.testing.assert_close(toy.vectors(model), before)
