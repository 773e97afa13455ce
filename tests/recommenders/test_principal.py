"""Maps that read principal directions: what they compute, and when they compute it anew."""

import torch

from ptmrec_dist.recommenders.principal import PrincipalMap, principal_directions
from tests.recommenders.conftest import Toy

ITEMS, WIDTH, RANK = 40, 12, 5


def _table(seed: int = 0, rank: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ITEMS, rank, generator=generator) @ torch.randn(rank, WIDTH, generator=generator)


def test_directions_span_the_largest_right_singular_vectors() -> None:
    scales = torch.tensor([9.0, 8, 7, 6, 5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    left, _, right = torch.linalg.svd(_table(), full_matrices=False)
    found = principal_directions(left * scales @ right, RANK)
    torch.testing.assert_close(found @ found.T, torch.eye(RANK), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T @ found, right[:RANK].T @ right[:RANK], atol=1e-3, rtol=0)


def test_a_table_of_low_rank_is_mapped_exactly_as_by_the_whole_matrix_with_its_gradient() -> None:
    table = _table(rank=RANK)
    linear = PrincipalMap(table, 3, RANK, bias=True)
    whole = (linear.weight @ linear.directions).detach().requires_grad_()
    expected = table @ whole.T + linear.bias
    torch.testing.assert_close(linear(table), expected, atol=1e-4, rtol=1e-4)
    weights = torch.randn(ITEMS, 3, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad((linear(table) * weights).sum(), [linear.weight])
    (want,) = torch.autograd.grad((expected * weights).sum(), [whole])
    torch.testing.assert_close(got @ linear.directions, want, atol=1e-3, rtol=1e-3)


def test_trained_features_get_the_gradient_of_the_same_map() -> None:
    table = _table()
    linear = PrincipalMap(table, 3, RANK, bias=False)
    trained = table.clone().requires_grad_()
    torch.testing.assert_close(linear(trained), linear(table), atol=1e-4, rtol=1e-4)
    linear(trained).sum().backward()
    torch.testing.assert_close(trained.grad[0], (linear.weight @ linear.directions).sum(dim=0))


def test_another_table_or_a_changed_one_is_mapped_as_it_is() -> None:
    table, other = _table(), _table(1)
    linear = PrincipalMap(table, 3, RANK, bias=False)

    def expected(rows: torch.Tensor) -> torch.Tensor:
        return rows @ (linear.weight @ linear.directions).T

    for rows in (table, other, table):
        torch.testing.assert_close(linear(rows), expected(rows), atol=1e-4, rtol=1e-4)
    table.copy_(other)
    torch.testing.assert_close(linear(table), expected(other), atol=1e-4, rtol=1e-4)


def test_narrow_features_and_no_limit_keep_every_column() -> None:
    for rank in (0, WIDTH, WIDTH + 1):
        linear = PrincipalMap(_table(), 3, rank, bias=False)
        assert linear.directions is None
        assert linear.weight.shape == (3, WIDTH)


def test_views_read_the_directions_which_travel_with_the_weights(toy: Toy) -> None:
    width = toy.features["image"].shape[1]
    model, same = (toy.build("mgcn", dim=4, rank=width - 1) for _ in range(2))
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.add_(1)
        same.maps["image"].directions.zero_()
    same.load_state_dict(model.state_dict())
    for found, expected in zip(toy.vectors(same), toy.vectors(model), strict=True):
        torch.testing.assert_close(found, expected)
    reads_all = toy.build("mgcn", dim=4, rank=0)
    assert model.maps["image"].weight.shape[1] == width - 1 < reads_all.maps["image"].weight.shape[1]
