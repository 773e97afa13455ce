"""Losses of stage 2 against loops."""

import math

import pytest
import torch

from ptmrec_dist.training.objectives.losses import hashed_choice, knowledge_transfer


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_knowledge_transfer_equals_the_sum_written_out(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator) for _ in range(2))
    counted = torch.rand(5, 7, generator=generator) > 0.3
    for user, found in enumerate(knowledge_transfer(student, teacher, counted, temperature).tolist()):
        columns = [column for column in range(7) if counted[user, column]]
        teach = [math.exp(teacher[user, column] / temperature) for column in columns]
        learn = [math.exp(student[user, column] / temperature) for column in columns]
        expected = sum(
            p / sum(teach) * (math.log(p / sum(teach)) - math.log(q / sum(learn)))
            for p, q in zip(teach, learn, strict=True)
        )
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    knowledge_transfer(student, teacher, torch.ones(1, 4, dtype=torch.bool)).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_items_left_out_get_no_gradient() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    counted = torch.tensor([[True, False, True, True]])
    knowledge_transfer(student, torch.randn(3, 4), counted).sum().backward()
    assert student.grad is not None
    assert (student.grad[:, 1] == 0).all()


def test_hashed_draws_depend_on_the_row_alone_and_are_even() -> None:
    users, items = torch.arange(4000) % 61, torch.arange(4000)
    drawn = hashed_choice(users, items, torch.tensor(10), salt=5, tries=3)
    shuffled = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hashed_choice(users[shuffled], items[shuffled], torch.tensor(10), 5, 3), drawn[shuffled])
    assert not torch.equal(hashed_choice(users, items, torch.tensor(10), salt=6, tries=3), drawn)
    counts = torch.bincount(drawn.flatten(), minlength=10)
    assert len(counts) == 10
    # 12,000 draws over 10 cells: six standard deviations are about 200.
    assert (counts - 1200).abs().max() < 200
