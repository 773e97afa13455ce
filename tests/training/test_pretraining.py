"""The losses of PMMRec, each against its equation written out for every user and position."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmrec_dist.training.objectives.contrast import contrast
from ptmrec_dist.training.objectives.noised_items import REPLACED, SHUFFLED, UNCHANGED, detection_loss, noised
from ptmrec_dist.training.objectives.robust import pooled, robust_contrast

ITEMS, DIM = 9, 4


@dataclass(frozen=True)
class Step:
    """Two users' items, as columns, in time order."""

    histories: tuple[tuple[int, ...], ...] = ((0, 4, 2), (5, 4, 8, 5))
    counts: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 1, 3, 1)

    def positions(self) -> list[tuple[int, int, int]]:
        """User, item and next item."""
        return [(u, i, j) for u, items in enumerate(self.histories) for i, j in pairwise(items)]


def _vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return text.requires_grad_(), image.requires_grad_()


def _written_out(
    step: Step, text: Tensor, image: Tensor, kind: str, complete: bool, temperature: float
) -> list[Tensor]:
    def delta(one: Tensor, other: Tensor) -> Tensor:
        return torch.exp(one @ other / one.norm() / other.norm() / temperature)

    losses = []
    for user, item, following in step.positions():
        free = [j for j in range(ITEMS) if j not in step.histories[user] for _ in range(step.counts[j])]
        both = []
        for own, other in ((text, image), (image, text)):
            first = delta(own[item], other[item])
            further = delta(own[item], other[following]) + delta(own[item], own[following]) if kind == "nicl" else 0
            negatives = sum(delta(own[item], other[j]) for j in free)
            if kind != "vcl":
                negatives = negatives + sum(delta(own[item], own[j]) for j in free)
            denominator = first + negatives + (further if complete else 0)
            both.append(-((first + further) / denominator).log())
        losses.append((both[0] + both[1]) / 2)
    return losses


def _contrast(step: Step, text: Tensor, image: Tensor, *choice: Any) -> Tensor:
    users, current, following = torch.tensor(step.positions()).T
    hidden = torch.tensor([[j in items for j in range(ITEMS)] for items in step.histories])
    log_counts = torch.tensor(step.counts, dtype=torch.float64).log()
    return contrast(text, image, current, following, log_counts.where(~hidden[users], -torch.inf), *choice)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("kind", ["vcl", "icl", "nicl"])
def test_the_contrast_is_that_of_the_paper(kind: str, complete: bool, temperature: float) -> None:
    text, image = _vectors()
    found = _contrast(Step(), text, image, kind, complete, temperature)
    expected = torch.stack(_written_out(Step(), text, image, kind, complete, temperature))
    torch.testing.assert_close(found, expected)
    for gradient, wanted in zip(
        torch.autograd.grad(found.sum(), (text, image)), torch.autograd.grad(expected.sum(), (text, image)), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_the_printed_denominator_gives_no_probability_and_the_complete_one_does() -> None:
    """Image, text and next item alike, n negatives at right angles: e and 1 instead of exponentials of cosines."""
    for number in (1, 8, 1344):
        alike, others = torch.zeros(2, number + 3), torch.eye(number + 3)[3:]
        alike[:, 0] = 1
        rows = torch.cat([alike, others]).double()
        one, two = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
        log_negatives = torch.tensor([[-math.inf, -math.inf] + [0.0] * number], dtype=torch.float64)
        losses = {}
        for complete in (True, False):
            losses[complete] = contrast(rows, rows, one, two, log_negatives, "nicl", complete, 1.0).item()
        assert losses[True] == pytest.approx(math.log((3 * math.e + 2 * number) / (3 * math.e)))
        assert losses[False] == pytest.approx(math.log((math.e + 2 * number) / (3 * math.e)))
        assert losses[True] > 0
        assert (losses[False] < 0) == (number < 3)


def _noise(rows: int, shuffle: float, replace: float, salt: int = 5) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Histories of 12 places, some of them padding, of items of which each user took a fifth."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(rows, 50, generator=generator) < 0.2
    inputs = torch.multinomial(hidden.double(), 12, replacement=True, generator=generator)
    mask = torch.arange(12) >= torch.randint(0, 8, (rows, 1), generator=generator)
    return inputs, mask, hidden, noised(inputs, mask, torch.arange(rows) * 7, hidden, shuffle, replace, salt)


def test_noise_shuffles_some_items_among_themselves_and_replaces_others_by_those_of_other_users() -> None:
    inputs, mask, hidden, (found, labels) = _noise(400, 0.15, 0.05)
    kinds = {UNCHANGED: 0, SHUFFLED: 0, REPLACED: 0}
    for row in range(400):
        moved = [c for c in range(12) if labels[row, c] == SHUFFLED]
        assert sorted(found[row, moved].tolist()) == sorted(inputs[row, moved].tolist())
        for column in range(12):
            label, before, after = int(labels[row, column]), int(inputs[row, column]), int(found[row, column])
            assert mask[row, column] or label == UNCHANGED
            assert (label == UNCHANGED) == (before == after)
            assert not (label == REPLACED and hidden[row, after])
            kinds[label] += int(mask[row, column])
    total = int(mask.sum())
    assert kinds[REPLACED] / total == pytest.approx(0.05, abs=0.01)
    assert 0.08 < kinds[SHUFFLED] / total < 0.15  # one that is alone stays


def test_noise_depends_on_seed_user_and_position_alone() -> None:
    inputs, mask, hidden, whole = _noise(40, 0.5, 0.3)
    part = slice(13, 29)
    again = noised(inputs[part], mask[part], torch.arange(40)[part] * 7, hidden[part], 0.5, 0.3, 5)
    assert torch.equal(again.inputs, whole.inputs[part])
    assert torch.equal(again.labels, whole.labels[part])
    assert not torch.equal(_noise(40, 0.5, 0.3, salt=6)[3].labels, whole.labels)
    assert not _noise(40, 0.0, 0.0)[3].labels.any()


def test_an_item_stays_where_no_other_users_item_is_at_hand() -> None:
    inputs, everything = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    found = noised(inputs, everything, torch.tensor([3]), everything, 0.0, 1.0, 5)
    assert torch.equal(found.inputs, inputs)
    assert not found.labels.any()


def test_the_detection_loss_is_the_cross_entropy_of_the_outputs_or_of_their_positive_parts() -> None:
    outputs = torch.tensor([[0.5, -1.0, 2.0], [-1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0])
    plain, positive = (detection_loss(outputs, labels, relu) for relu in (False, True))
    for row, label in enumerate(labels.tolist()):
        for losses, read in ((plain, outputs[row]), (positive, outputs[row].clamp(min=0))):
            assert losses[row].item() == pytest.approx(-math.log((read[label].exp() / read.exp().sum()).item()))
    assert positive[1].item() == pytest.approx(math.log(3))
    (gradient,) = torch.autograd.grad(positive[1], outputs)
    assert not gradient.any()


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_robust_contrast_compares_a_history_with_the_noised_ones_of_all_users(temperature: float | None) -> None:
    generator = torch.Generator().manual_seed(2)
    states, distorted = (torch.randn(5, 3, DIM, generator=generator).double() for _ in range(2))
    mask = torch.tensor([[True] * 3, [False, True, True], [True] * 3, [False] * 2 + [True], [False] * 3])
    states, distorted = states * mask[:, :, None], distorted * mask[:, :, None]
    counted, own = torch.tensor([True, True, False, True, True]), torch.tensor([1, 3])
    clean, noisy = pooled(states, mask), pooled(distorted, mask)
    assert not clean[4].any()
    found = robust_contrast(clean[own], noisy, own, counted, temperature)
    for row, user in enumerate(own.tolist()):
        h = states[user][mask[user]].mean(dim=0)
        scores = {}
        for other in (0, 1, 3, 4):
            k = distorted[other][mask[other]].mean(dim=0) if mask[other].any() else torch.zeros(DIM)
            lengths = (h.norm() * k.norm()).item() or 1.0
            scores[other] = (h @ k.double()).item() / (math.sqrt(DIM) if temperature is None else lengths * temperature)
        expected = -scores[user] + math.log(sum(math.exp(score) for score in scores.values()))
        assert found[row].item() == pytest.approx(expected)
