"""The gather with gradient and the mean over ranks, against one process that holds all rows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ptmrec_dist.distributed import gather_rows, join_world, mean_over_ranks, sum_over_ranks
from tests.ranks import run_on_ranks

ROWS = {2: (5, 3), 3: (4, 0, 3)}


def _inputs(counts: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, 4, generator=generator) for count in counts], torch.randn(4, 4, generator=generator)


def _softmax_rows(own: Tensor, everything: Tensor) -> Tensor:
    """A loss of each own row that reads all rows, as in-batch negatives do."""
    return (own @ everything.T).log_softmax(dim=1).pow(2).sum(dim=1)


def _gradient_on_ranks(counts: tuple[int, ...]) -> tuple[float, Tensor, Tensor]:
    world = join_world("cpu")
    rows_of_ranks, weight = _inputs(counts)
    weight.requires_grad_()
    own = rows_of_ranks[world.rank] @ weight
    everything = gather_rows(own)
    loss = mean_over_ranks(_softmax_rows(own, everything))
    loss.backward()
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    return sum_over_ranks(loss).item() / world.size, sum_over_ranks(gradient) / world.size, everything.detach()


@pytest.mark.parametrize("size", [2, 3])
def test_averaged_gradient_over_uneven_ranks_equals_one_process(size: int) -> None:
    counts = ROWS[size]
    rows_of_ranks, weight = _inputs(counts)
    weight.requires_grad_()
    rows = torch.cat(rows_of_ranks) @ weight
    expected = _softmax_rows(rows, rows).mean()
    expected.backward()
    for loss, gradient, everything in run_on_ranks(size, _gradient_on_ranks, counts):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(everything, rows.detach().numpy())


def test_ranks_without_any_row_gather_none_with_a_gradient() -> None:
    for loss, gradient, everything in run_on_ranks(2, _gradient_on_ranks, (0, 0)):
        assert loss == 0.0
        np.testing.assert_array_equal(gradient, np.zeros((4, 4)))
        assert everything.shape == (0, 4)


def _means(counts: tuple[int, ...]) -> float:
    world = join_world("cpu")
    rows = torch.arange(sum(counts), dtype=torch.float32).split(counts)[world.rank]
    return sum_over_ranks(mean_over_ranks(rows, weights_R=rows + 1)).item() / world.size


def test_weighted_mean_over_ranks_is_the_mean_over_all_rows() -> None:
    rows = torch.arange(7.0)
    expected = (rows * (rows + 1)).sum() / (rows + 1).sum()
    assert run_on_ranks(3, _means, (4, 0, 3)) == pytest.approx([expected.item()] * 3)


def test_one_process_needs_no_world() -> None:
    rows = torch.tensor([1.0, 3.0], requires_grad=True)
    assert gather_rows(rows) is rows
    assert mean_over_ranks(rows).item() == 2.0
