"""Deep prompts against prompting spelled out, layer by layer, with open_clip's own modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import image_transform_v2
from PIL import Image
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, PromptConfig
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from tests.tiny_clip import write_tiny_clip

TEXTS = ["a red cup", "two", "the long way home over the hills and far away from everything else", "blue"]


def _encoder(folder: Path, depth: Any = None, modalities: tuple[str, ...] = ("image", "text")) -> Encoder:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), modalities)
    if depth is not None:
        encoder.tune("prompt", PromptConfig(depth=depth, length=3), torch.Generator().manual_seed(1))
        for parameter in encoder.attached.parameters():
            parameter.data.mul_(20)  # large enough to matter
    return encoder


def _images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def _image_reference(clip: Any, images: Tensor, prompts: Tensor) -> Tensor:
    visual, (depth, length, _) = clip.visual, prompts.shape
    tokens = visual._embeds((images / 255 - 0.5) / 0.25)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer < depth:
            if layer > 0:  # the output of the previous layer's prompts is dropped
                tokens = tokens[:, :-length]
            tokens = torch.cat([tokens, prompts[layer].repeat(len(images), 1, 1)], dim=1)
        tokens = block(tokens)
    return F.normalize(visual.ln_post(tokens[:, 0]) @ visual.proj, dim=1)


def _text_reference(clip: Any, ids: Tensor, prompts: Tensor) -> Tensor:
    text, (depth, length, _) = getattr(clip, "text", clip), prompts.shape
    tokens = text.token_embedding(ids) + text.positional_embedding
    size = length + ids.shape[1]
    causal = torch.full((size, size), float("-inf")).triu(1)
    for layer, block in enumerate(text.transformer.resblocks):
        if layer < depth:
            if layer > 0:
                tokens = tokens[:, length:]
            tokens = torch.cat([prompts[layer].repeat(len(ids), 1, 1), tokens], dim=1)
        tokens = block(tokens, attn_mask=causal)
    ends = ids.argmax(dim=1) + length
    return F.normalize(text.ln_final(tokens)[torch.arange(len(ids)), ends] @ text.text_projection, dim=1)


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), custom_text=request.param == "CustomTextCLIP")


@pytest.mark.parametrize("depth", [1, 2, "all"])
def test_prompted_features_equal_prompting_spelled_out(folder: Path, depth: Any) -> None:
    encoder, plain = _encoder(folder, depth), _encoder(folder)
    ids = encoder.backbone.tokenize(TEXTS)
    features = encoder.encode(_images(), ids)
    for modality, inputs, reference in (("image", _images(), _image_reference), ("text", ids, _text_reference)):
        expected = reference(plain.model, inputs, encoder.attached[modality].vectors_PLD)
        torch.testing.assert_close(features[modality], expected, rtol=1e-5, atol=1e-6)


def test_every_layer_of_each_tower_gets_its_own_prompts_by_default(folder: Path) -> None:
    state = _encoder(folder, "all").tuned_state()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "attached.image.vectors_PLD": (3, 3, 32),
        "attached.text.vectors_PLD": (2, 3, 24),
    }


def test_without_prompts_the_features_are_those_of_open_clip(folder: Path) -> None:
    encoder = _encoder(folder)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in _images()]
    features = encoder.encode(torch.stack(list(map(encoder.backbone.load_image, images))), encoder.tokenize(TEXTS))
    transform = image_transform_v2(encoder.backbone.image_config, is_train=False)
    with torch.no_grad():
        image = encoder.model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        text = encoder.model.encode_text(encoder.backbone.tokenize(TEXTS), normalize=True)
    torch.testing.assert_close(features["image"], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features["text"], text, rtol=1e-4, atol=1e-5)


def test_leaving_out_padding_changes_nothing(folder: Path) -> None:
    encoder = _encoder(folder, "all")
    short = ["a red cup", "two"]
    whole, trimmed = encoder.backbone.tokenize(short), encoder.tokenize(short)
    assert trimmed.shape[1] < whole.shape[1]
    expected = encoder.encode(_images()[:2], whole)["text"]
    torch.testing.assert_close(encoder.encode(_images()[:2], trimmed)["text"], expected, rtol=1e-5, atol=1e-6)


def test_only_prompts_get_a_gradient_and_all_of_them_do(folder: Path) -> None:
    encoder = _encoder(folder, "all")
    target = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    features = encoder.encode(_images(), encoder.tokenize(TEXTS))
    sum((rows * target).sum() for rows in features.values()).backward()
    assert [name for name, value in encoder.named_parameters() if value.requires_grad] == [
        "attached.image.vectors_PLD",
        "attached.text.vectors_PLD",
    ]
    for parameter in encoder.attached.parameters():
        assert (parameter.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_training_mode_never_reaches_the_frozen_backbone(tmp_path: Path) -> None:
    encoder = _encoder(write_tiny_clip(tmp_path, patch_dropout=0.5))
    ids = encoder.tokenize(TEXTS)
    expected = encoder.eval().encode(_images(), ids)["image"]
    torch.testing.assert_close(encoder.train().encode(_images(), ids)["image"], expected, rtol=0, atol=0)


def test_no_items_give_no_rows_that_still_reach_the_prompts(folder: Path) -> None:
    encoder = _encoder(folder, "all")
    features = encoder.encode(_images()[:0], encoder.tokenize(["a"])[:0])
    assert {modality: tuple(rows.shape) for modality, rows in features.items()} == {"image": (0, 20), "text": (0, 20)}
    sum(rows.sum() for rows in features.values()).backward()
    assert all(parameter.grad is not None for parameter in encoder.attached.parameters())


def test_saved_prompts_load_into_an_equal_encoder(folder: Path, tmp_path: Path) -> None:
    from ptmrec_dist.distributed.tensor_file import save_tensors

    encoder = _encoder(folder, 2)
    save_tensors(tmp_path / "encoder.safetensors", encoder.tuned_state(), encoder.description)
    again = load_encoder(folder, tmp_path / "encoder.safetensors")
    ids = encoder.tokenize(TEXTS)
    for modality, rows in encoder.encode(_images(), ids).items():
        torch.testing.assert_close(again.encode(_images(), ids)[modality], rows, rtol=1e-4, atol=1e-6)


def test_prompts_deeper_than_a_tower_are_refused_with_both_depths(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"got 3, but the image tower has 3 layers, the text tower has 2 layers; use at most 2"
    ):
        _encoder(folder, 3)


def test_bf16_features_are_close_and_float32(folder: Path) -> None:
    exact = _encoder(folder).encode(_images(), _encoder(folder).tokenize(TEXTS))
    coarse = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"), precision="bf16")
    for modality, rows in coarse.encode(_images(), coarse.tokenize(TEXTS)).items():
        assert rows.dtype == torch.float32
        assert F.cosine_similarity(rows, exact[modality]).min() > 0.99


def test_real_clip_gives_the_features_of_open_clip(shared_data: Callable[[str], Path]) -> None:
    encoder = _encoder(shared_data("clip-xs"))
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(encoder.backbone.image_config.mean).view(3, 1, 1)
    std = torch.tensor(encoder.backbone.image_config.std).view(3, 1, 1)
    ids = encoder.backbone.tokenize(["a film about a dog", "war"])
    with torch.no_grad():
        expected = encoder.model.encode_image((images / 255 - mean) / std, normalize=True)
        features = encoder.encode(images, ids)
        texts = encoder.model.encode_text(ids, normalize=True)
    torch.testing.assert_close(features["image"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features["text"], texts, rtol=1e-4, atol=1e-5)
