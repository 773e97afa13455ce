"""Batches as a reader stacks them."""

import torch
from PIL import Image
from torch import Tensor

from ptmrec_dist.data.reader import Reader


def test_blank_images_are_preprocessed_once_and_only_where_an_item_has_none() -> None:
    preprocessed = []

    def pixels(image: Image.Image) -> Tensor:
        preprocessed.append(image.size)
        return torch.full((3, 2, 2), 7, dtype=torch.uint8)

    reader, own = Reader(load_image=pixels), torch.ones(3, 2, 2, dtype=torch.uint8)
    stacked, _ = reader.collate([own, own], [])
    assert torch.equal(stacked, torch.ones(2, 3, 2, 2))
    assert len(preprocessed) == 0
    for _ in range(3):
        stacked, _ = reader.collate([own, None], [])
        assert stacked.flatten(1).tolist() == [[1] * 12, [7] * 12]
        empty, _ = reader.collate([], [])
        assert empty.shape == (0, 3, 2, 2)
    assert len(preprocessed) == 1
