"""Learning rates rise, fall, and are where they were when a run goes on."""

import pytest
import torch

from ptmrec_dist.config import Schedule
from ptmrec_dist.training.optim import schedule_of


def _optimizer() -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    return torch.optim.AdamW([{"params": weights[:1], "lr": 1e-2}, {"params": weights[1:], "lr": 1e-3}])


def _rates(kind: Schedule, steps: int) -> list[list[float]]:
    optimizer = _optimizer()
    schedule = schedule_of(optimizer, kind, steps)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [1, 2, 5, 40, 101])
def test_learning_rates_rise_over_the_first_tenth_and_then_fall_towards_nothing(steps: int) -> None:
    rates = [first for first, _ in _rates("cosine", steps)]
    top = rates.index(max(rates))
    assert min(rates) > 0
    assert max(rates) <= 1e-2
    assert top <= steps / 10
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps >= 40:
        assert max(rates) > 0.95e-2
        assert rates[-1] < 0.02e-2


def test_groups_keep_the_ratio_of_their_learning_rates() -> None:
    for first, second in _rates("cosine", 20):
        assert first == pytest.approx(10 * second)


def test_constant_learning_rates_stay() -> None:
    assert _rates("constant", 7) == [[1e-2, 1e-3]] * 7


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("done", [0, 1, 3, 19])
def test_a_run_that_goes_on_has_the_learning_rates_that_it_would_have_had(kind: Schedule, done: int) -> None:
    optimizer = _optimizer()
    schedule = schedule_of(optimizer, kind, 20, done)
    for expected in _rates(kind, 20)[done:]:
        assert [group["lr"] for group in optimizer.param_groups] == expected
        optimizer.step()
        schedule.step()
