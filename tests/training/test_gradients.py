"""The gradient that the optimiser sees, on any number of ranks, is the one of a single process that holds the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ptmrec_dist.distributed import gather_rows
from tests.conftest import Project
from tests.ranks import run_on_ranks
from tests.training.gradient_world import Setting, expected_gradients, found_gradients
from tests.training.tuner_world import Case

pytestmark = pytest.mark.slow

PLAIN, MASKED, LIVE = Case(), Case(mask_known=True), Case("vbpr", live_teacher=True, id_only=True)
FREEDOM, MGCN, SMORE = Case("freedom", mask_known=True), Case("mgcn"), Case("smore", live_teacher=True)
SLMREC = Case("slmrec", model=(("cl_temperature", 2.0),))  # soft enough for float32: its dot products are not bounded
MMGCL = Case("mmgcl", live_teacher=True, id_only=True)
MMGCN = Case("mmgcn", live_teacher=True, id_only=True, model=(("input_dim", 6),))
LATTICE = Case("lattice", model=(("graph_gradient", "every"),))
SETTINGS = [
    *(Setting(PLAIN, zero) for zero in (0, 1, 2, 3)),
    *(Setting(MASKED, zero, accumulation=2) for zero in (0, 1, 2, 3)),
    *(Setting(case, 1) for case in (MASKED, LIVE, FREEDOM, MGCN, SMORE, MMGCN, LATTICE, SLMREC, MMGCL)),
    Setting(FREEDOM, 2, accumulation=2),
]


def _assert_equal(found: dict[str, np.ndarray], expected: dict[str, Tensor], setting: Setting) -> None:
    """Up to the rounding of the module that a parameter is in: a bias may be what is left of large terms of both signs."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        module = name.rpartition(".")[0]
        scale = max(1e-6, *(other.abs().max().item() for key, other in expected.items() if key.startswith(module)))
        message = f"{setting}: {name}"
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5, atol=1e-5 * scale, err_msg=message)


@pytest.mark.parametrize("world", [2, 3])
def test_every_term_and_parameter_has_the_gradient_of_one_process(tiny_project: Project, world: int) -> None:
    """Even and uneven shares, a rank without items, items on several ranks, both ways of batching, accumulation."""
    expected = {setting: expected_gradients(tiny_project, setting, world) for setting in SETTINGS}
    for on_rank in run_on_ranks(world, found_gradients, tiny_project, SETTINGS):
        for setting in SETTINGS:
            _assert_equal(on_rank[setting], expected[setting], setting)


def _without_gradient(rows: Tensor, *arguments: int, **named: int) -> Tensor:
    return gather_rows(rows.detach(), *arguments, **named)


def _local_gradient_only(rows: Tensor, *arguments: int, **named: int) -> Tensor:
    """The usual mistake: the own rows are put back, those of the others carry no gradient."""
    everything = gather_rows(rows.detach(), *arguments, **named)
    first = dist.get_rank() * (len(everything) // dist.get_world_size())
    return torch.cat([everything[:first], rows, everything[first + len(rows) :]])


def _ranks_in_another_order(rows: Tensor, *arguments: int, **named: int) -> Tensor:
    everything = gather_rows(rows, *arguments, **named)
    return everything.roll(len(everything) // 2, 0) if everything.is_floating_point() else everything


@pytest.mark.parametrize("gather", [_without_gradient, _local_gradient_only, _ranks_in_another_order])
def test_a_wrong_gather_does_not_pass(tiny_project: Project, gather: Callable[..., Tensor]) -> None:
    setting = Setting(PLAIN, 1)
    expected = expected_gradients(tiny_project, setting, 2)
    found = run_on_ranks(2, found_gradients, tiny_project, [setting], gather)[0][setting]
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _assert_equal(found, expected, setting)
