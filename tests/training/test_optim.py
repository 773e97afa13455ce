"""Learning rates rise, fall, and are where they were when a run is resumed."""

import pytest
import torch

from ptmrec_dist.config import Schedule
from ptmrec_dist.training.optim import adamw, schedule_of


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


def test_matrices_decay_and_biases_norms_embeddings_and_prompts_do_not() -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = torch.nn.Embedding(3, 4), torch.nn.LayerNorm(4)
            self.attention, self.kernel = torch.nn.MultiheadAttention(4, 2), torch.nn.Conv1d(4, 4, 3)
            self.positions_LD, self.vectors_PLD = (
                torch.nn.Parameter(torch.ones(*size)) for size in ((2, 4), (1, 2, 4))
            )
            self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)

    model = Small()
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, 0.1, (model.parameters(), 1e-2), (model.attention.parameters(), 1e-3))
    found = {
        (group["lr"], group["weight_decay"]): {names[p] for p in group["params"]} for group in optimizer.param_groups
    }
    biases = {"attention.in_proj_bias", "attention.out_proj.bias"}
    assert found == {
        (1e-2, 0.1): {"kernel.weight"},
        (1e-2, 0.0): {"table.weight", "norm.weight", "norm.bias", "kernel.bias", "positions_LD", "vectors_PLD"},
        (1e-3, 0.1): {"attention.in_proj_weight", "attention.out_proj.weight"},
        (1e-3, 0.0): biases,
    }
    plain = adamw(model, 0.0, (model.parameters(), 1e-2), (model.attention.parameters(), 1e-3))
    assert [group["weight_decay"] for group in plain.param_groups] == [0.0, 0.0]
