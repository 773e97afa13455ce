"""Texts of similar length are encoded together: the same features and gradients, for less padding."""

import random
from pathlib import Path

import pytest
import torch

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.lengths import groups_of_similar_length
from ptmrec_dist.encoders.sources.loading import load_backbone
from tests.encoders.tiny_sources import WORDS, write_text_encoder


def _texts(count: int) -> list[str]:
    drawn = random.Random(0)
    return [" ".join(drawn.choices(WORDS.split(), k=drawn.choice([1, 2, 3, 30]))) for _ in range(count)]


@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
def test_features_and_gradients_do_not_depend_on_the_order_of_encoding(tmp_path: Path, method: str) -> None:
    folder = write_text_encoder(tmp_path / "bert")
    encoders = [Encoder(load_backbone(EncoderConfig(text=f"hf:{folder}")), ("text",)) for _ in range(2)]
    weights, tokens = torch.rand(200, 24), encoders[0].tokenize(_texts(200))
    rows, gradients = [], []
    for encoder, sort in zip(encoders, (False, True), strict=True):
        encoder.tune(method, None, torch.Generator().manual_seed(0))
        encoder.sort_by_length = sort
        rows.append(encoder.encode(None, tokens)["text"])
        (rows[-1] * weights).sum().backward()
        gradients.append({name: value.grad for name, value in encoder.named_parameters() if value.requires_grad})
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-5, atol=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_every_text_is_in_one_group_and_little_padding_is_left(tmp_path: Path) -> None:
    encoder = Encoder(load_backbone(EncoderConfig(text=f"hf:{write_text_encoder(tmp_path / 'bert')}")), ("text",))
    tower, tokens = encoder.towers["text"], encoder.tokenize(_texts(200))
    groups = groups_of_similar_length(tower, tokens)
    assert torch.cat(groups).sort().values.tolist() == list(range(200))
    assert sum(tower.trimmed(tokens[rows]).numel() for rows in groups) < 0.6 * tokens.numel()


def test_texts_of_one_length_are_one_group_in_their_order(tmp_path: Path) -> None:
    encoder = Encoder(load_backbone(EncoderConfig(text=f"hf:{write_text_encoder(tmp_path / 'bert')}")), ("text",))
    (rows,) = groups_of_similar_length(encoder.towers["text"], encoder.tokenize(["a red cup"] * 100))
    assert rows.tolist() == list(range(100))
