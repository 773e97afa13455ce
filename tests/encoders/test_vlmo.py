"""VLMo and BEiT-3 against loops over the published weights, and what tuning methods do where modalities share attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ptmrec_dist.encoders.sources.vlmo.source import Unified, load_unified
from ptmrec_dist.errors import UserError
from tests.encoders.vlmo_files import (
    HEADS,
    JOINT,
    LAYERS,
    SIDE,
    SIZES,
    WIDTH,
    published_beit3,
    published_vlmo,
    write_published,
)

TEXTS = ["red things", "a green lamp, number of a blue cup", ""]


@pytest.fixture(scope="module")
def vlmo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file of a small VLMo."""
    folder = tmp_path_factory.mktemp("vlmo") / "files"
    return write_published(folder, published_vlmo(), SIZES | {"model_type": "vlmo", "joint_layers": JOINT})


@pytest.fixture(scope="module")
def beit3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file of a small BEiT-3; its texts are read with a WordPiece vocabulary."""
    folder = tmp_path_factory.mktemp("beit3") / "files"
    sizes = SIZES | {"model_type": "beit3", "positions": 20, "pad_id": 0}
    return write_published(folder, published_beit3(), sizes)


def _pixels() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, SIDE, SIDE), dtype=np.uint8))


def _norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of one sequence [N, D], head by head."""
    heads = []
    for q, k, v in zip(query.chunk(HEADS, -1), key.chunk(HEADS, -1), value.chunk(HEADS, -1), strict=True):
        heads.append(((q @ k.T) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v)
    return torch.cat(heads, -1)


def _patches(weights: dict[str, Tensor], prefix: str, pixels: Tensor) -> Tensor:
    scaled = (pixels.float() / 255 - 0.5) / 0.5
    patches = F.conv2d(scaled[None], weights[f"{prefix}.proj.weight"], weights[f"{prefix}.proj.bias"], stride=16)
    return patches[0].flatten(1).T


def _vlmo_block(weights: dict[str, Tensor], number: int, x: Tensor, texts: int, joint: bool) -> Tensor:
    """A block of VLMo on one sequence of `texts` text tokens, then image tokens."""
    block = f"transformer.blocks.{number}"
    normed = _norm(weights, f"{block}.norm1", x, 1e-6)
    query, key, value = (normed @ weights[f"{block}.attn.qkv.weight"].T).chunk(3, -1)
    attended = _attend(query + weights[f"{block}.attn.q_bias"], key, value + weights[f"{block}.attn.v_bias"])
    x = x + _linear(weights, f"{block}.attn.proj", attended)
    rows = []
    for position, row in enumerate(x):
        expert = "vl" if joint and number >= LAYERS - JOINT else "text" if position < texts else "imag"
        hidden = F.gelu(_linear(weights, f"{block}.mlp_{expert}.fc1", _norm(weights, f"{block}.norm2_{expert}", row, 1e-6)))
        rows.append(row + _linear(weights, f"{block}.mlp_{expert}.fc2", hidden))
    return torch.stack(rows)


def _vlmo_image(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    tokens = torch.cat([weights["transformer.cls_token"][0], _patches(weights, "transformer.patch_embed", pixels)])
    return tokens + weights["transformer.pos_embed"][0] + weights["token_type_embeddings.weight"][1]


def _vlmo_text(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    stem = "text_embeddings"
    words = weights[f"{stem}.word_embeddings.weight"][ids] + weights[f"{stem}.token_type_embeddings.weight"][0]
    summed = words + weights[f"{stem}.position_embeddings.weight"][: len(ids)]
    return _norm(weights, f"{stem}.LayerNorm", summed, 1e-12) + weights["token_type_embeddings.weight"][0]


def _vlmo_states(weights: dict[str, Tensor], image: Tensor | None, ids: list[int] | None) -> Tensor:
    """Final states of an image, a text, or a pair, without any padding."""
    parts = [*([] if ids is None else [_vlmo_text(weights, ids)]), *([] if image is None else [_vlmo_image(weights, image)])]
    x = torch.cat(parts)
    for number in range(LAYERS):
        x = _vlmo_block(weights, number, x, 0 if ids is None else len(ids), joint=len(parts) == 2)
    return _norm(weights, "transformer.norm", x, 1e-6)


def _beit3_states(weights: dict[str, Tensor], image: Tensor | None, ids: list[int] | None) -> Tensor:
    """Final states of an image or a text in BEiT-3."""
    way, stem = ("B", "beit3.encoder") if image is None else ("A", "beit3.encoder")
    if image is None:
        assert ids is not None
        x = weights["beit3.text_embed.weight"][ids]
    else:
        x = torch.cat([weights["beit3.vision_embed.cls_token"][0], _patches(weights, "beit3.vision_embed", image)])
    x = x + weights[f"{stem}.embed_positions.{way}.weight"][2 : 2 + len(x)]
    for number in range(LAYERS):
        layer = f"{stem}.layers.{number}"
        normed = _norm(weights, f"{layer}.self_attn_layer_norm.{way}", x, 1e-5)
        projected = (_linear(weights, f"{layer}.self_attn.{name}_proj.{way}", normed) for name in "qkv")
        inner = _norm(weights, f"{layer}.self_attn.inner_attn_ln.{way}", _attend(*projected), 1e-5)
        x = x + _linear(weights, f"{layer}.self_attn.out_proj.{way}", inner)
        hidden = F.gelu(_linear(weights, f"{layer}.ffn.{way}.fc1", _norm(weights, f"{layer}.final_layer_norm.{way}", x, 1e-5)))
        x = x + _linear(weights, f"{layer}.ffn.{way}.fc2", _norm(weights, f"{layer}.ffn.{way}.ffn_layernorm", hidden, 1e-5))
    return _norm(weights, f"{stem}.layer_norm.{way}", x, 1e-5)


def _unpadded(ids: Tensor) -> list[int]:
    return [int(number) for number in ids if number]


def test_vlmo_equals_the_published_weights_written_out(vlmo: Path) -> None:
    weights, loaded = published_vlmo(), load_unified(str(vlmo))
    pixels, ids = _pixels(), loaded.tokenize(TEXTS)
    image, text = loaded.tower("image").encode(pixels), loaded.tower("text").encode(ids)
    pair = loaded.model.encode_pair(pixels.float() / 127.5 - 1, ids)  # type: ignore[union-attr, operator]
    for row in range(3):
        own = _unpadded(ids[row])
        torch.testing.assert_close(image[row], _vlmo_states(weights, pixels[row], None)[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text[row], _vlmo_states(weights, None, own)[0], rtol=1e-4, atol=1e-4)
        expected = _vlmo_states(weights, pixels[row], own)
        torch.testing.assert_close(pair[row, : len(own)], expected[: len(own)], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pair[row, ids.shape[1] :], expected[len(own) :], rtol=1e-4, atol=1e-4)


def test_beit3_equals_the_published_weights_written_out(beit3: Path) -> None:
    weights, loaded = published_beit3(), load_unified(str(beit3))
    pixels, ids = _pixels(), loaded.tokenize(TEXTS)
    image, text = loaded.tower("image").encode(pixels), loaded.tower("text").encode(ids)
    for row in range(3):
        torch.testing.assert_close(image[row], _beit3_states(weights, pixels[row], None)[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            text[row], _beit3_states(weights, None, _unpadded(ids[row]))[0], rtol=1e-4, atol=1e-4
        )
