"""The rows of a batch stand for the table: the same values and gradients, and nothing of other items."""

import pytest
import torch

from ptmrec_dist.recommenders.rows import BatchRows, row_gaps

ITEMS_G = torch.tensor([7, 7, 3, 5, 3, 0])
COUNTED_G = torch.tensor([False, True, True, True, False, False])
"""The first 7 fills a rank up, the second 3 is a copy, nothing of item 0 counts."""


def _rows() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_look_ups_equal_those_in_a_table_with_the_counted_rows_in_place() -> None:
    rows, other = _rows(), _rows()
    table = torch.zeros(9, 4).index_add(0, ITEMS_G, other * COUNTED_G[:, None])
    positives, negatives = torch.tensor([3, 5, 7, 3]), torch.tensor([7, 3, 3, 5])
    batch = BatchRows(ITEMS_G, COUNTED_G, rows)
    assert torch.equal(batch[positives], table[positives])
    gaps, expected = row_gaps(batch, positives, negatives), row_gaps(table, positives, negatives)
    assert torch.equal(gaps, expected)
    weights = torch.arange(16.0).reshape(4, 4)
    (gaps * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(rows.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("item", [1, 8])
def test_an_item_outside_the_batch_is_refused(item: int) -> None:
    batch = BatchRows(ITEMS_G, COUNTED_G, _rows())
    with pytest.raises(IndexError):
        batch[torch.tensor([3, item])]
