"""Hard negatives and masked words against loops."""

import math

import pytest
import torch

from ptmrec_dist.training.objectives.masking import IGNORED, Vocabulary, mask_words
from ptmrec_dist.training.objectives.matching import hard_negatives, matching_loss


def test_hard_negatives_follow_the_softmax_of_other_pairs() -> None:
    logits = torch.tensor([[9.0, 2.0, 1.0, -1.0], [0.5, 0.0, 400.0, 3.0]])
    own = torch.tensor([0, 3])
    uniform = (torch.arange(2000) + 0.5) / 2000
    found = hard_negatives(logits.repeat(2000, 1), own.repeat(2000), uniform.repeat_interleave(2))
    for row in range(2):
        soft = [math.exp(float(value - logits[row].max())) for value in logits[row]]
        weights = [0 if column == own[row] else soft[column] / sum(soft) + 1e-4 for column in range(4)]
        counts = torch.bincount(found[row::2], minlength=4)
        for column in range(4):
            assert counts[column].item() / 2000 == pytest.approx(weights[column] / sum(weights), abs=1e-3)


def test_hard_negative_of_two_pairs_is_always_the_other() -> None:
    logits = torch.tensor([[500.0, -500.0], [0.0, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert hard_negatives(logits, torch.tensor([0, 1]), torch.full((2,), uniform)).tolist() == [1, 0]


def test_matching_loss_takes_pairs_as_yes_and_others_as_no() -> None:
    yes, no = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    found = matching_loss(yes, no, yes)
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_masking_hides_whole_words_and_no_special_token() -> None:
    """Ids: 0 padding, 1 class, 2 end, 3 mask; 4 to 9 words, of which 8 and 9 continue one."""
    special, continues = torch.arange(10) < 4, torch.arange(10) >= 8
    vocabulary = Vocabulary(3, special, continues)
    ids = torch.tensor([[1, 4, 8, 9, 5, 8, 6, 2, 0, 0]]).repeat(4000, 1)
    uniform = torch.rand(4000, 10, 3, generator=torch.Generator().manual_seed(0))
    masked, labels = mask_words(ids, uniform, vocabulary, rate=0.15)
    hidden = labels != IGNORED
    assert not hidden[:, [0, 7, 8, 9]].any()
    assert torch.equal(hidden[:, 1], hidden[:, 2])
    assert torch.equal(hidden[:, 1], hidden[:, 3])
    assert torch.equal(hidden[:, 4], hidden[:, 5])
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(masked[~hidden], ids[~hidden])
    for column in (1, 4, 6):
        assert hidden[:, column].float().mean().item() == pytest.approx(0.15, abs=0.02)
    replaced = masked[hidden]
    assert (replaced == 3).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (replaced == ids[hidden]).float().mean().item() == pytest.approx(0.1 + 0.1 / 6, abs=0.02)
    assert not special[replaced[replaced != 3]].any()
