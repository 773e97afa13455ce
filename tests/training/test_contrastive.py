"""The contrastive objective against loops and over ranks, and the tiny CLIP that is trained with it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.data.synthetic import draw_pairs
from ptmrec_dist.distributed import gather_rows, join_world, mean_over_ranks, sum_over_ranks
from ptmrec_dist.encoders.backbone import load_backbone
from ptmrec_dist.encoders.tuning import Encoder
from ptmrec_dist.training.contrastive import IMAGE_SIZE, contrastive_loss, train_clip
from tests.ranks import run_on_ranks

COUNTS = (4, 2)


def _features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(6, 5, generator=generator), dim=1) for _ in range(2))  # type: ignore[return-value]


def test_loss_equals_eq_2_in_both_directions_written_out() -> None:
    images, texts = _features()
    found = contrastive_loss(images, texts, images, texts, torch.arange(6), 7.0)
    for row in range(6):
        to_texts = [math.exp(7 * float(images[row] @ text)) for text in texts]
        to_images = [math.exp(7 * float(texts[row] @ image)) for image in images]
        expected = -(math.log(to_texts[row] / sum(to_texts)) + math.log(to_images[row] / sum(to_images))) / 2
        assert found[row].item() == pytest.approx(expected, rel=1e-5)


def _gradient_on_ranks() -> tuple[float, Tensor]:
    world = join_world("cpu")
    images, texts = _features()
    weight = torch.eye(5, requires_grad=True)
    own = slice(*((0, 4) if world.is_first else (4, 6)))
    images_BD, texts_BD = images[own] @ weight, texts[own] @ weight
    rows = torch.arange(6)[own]
    loss = mean_over_ranks(
        contrastive_loss(images_BD, texts_BD, gather_rows(images_BD), gather_rows(texts_BD), rows, 7.0)
    )
    loss.backward()
    assert weight.grad is not None
    return sum_over_ranks(loss).item() / 2, sum_over_ranks(weight.grad) / 2


def test_gradient_on_ranks_equals_one_process() -> None:
    images, texts = _features()
    weight = torch.eye(5, requires_grad=True)
    moved = images @ weight, texts @ weight
    expected = contrastive_loss(*moved, *moved, torch.arange(6), 7.0).mean()
    expected.backward()
    assert weight.grad is not None
    for loss, gradient in run_on_ranks(2, _gradient_on_ranks):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_a_trained_clip_loads_as_an_encoder_and_one_seed_gives_one(tmp_path: Path) -> None:
    pictures, captions = draw_pairs(16, size=IMAGE_SIZE, seed=0)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_clip(tmp_path / name, pictures, captions, seed=seed, steps=2)
    a, b, c = (load_backbone(EncoderConfig(model=str(tmp_path / name))) for name in "abc")
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != c.fingerprint
    encoder = Encoder(a, ("image", "text"))
    features = encoder.encode(torch.from_numpy(pictures[:2]), encoder.tokenize(captions[:2]))
    assert features["image"].shape == features["text"].shape
