"""Loading encoders: what is refused, and what survives writing and reading."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.sources.loading import load_backbone, load_backbone_of, save_backbone
from ptmrec_dist.errors import UserError
from tests.tiny_clip import write_tiny_clip


def test_an_encoder_written_and_read_is_the_same(tiny_clip: Path, tmp_path: Path) -> None:
    backbone = load_backbone(EncoderConfig(model=str(tiny_clip)))
    save_backbone(backbone, tmp_path / "copy")
    copy = load_backbone(EncoderConfig(model=str(tmp_path / "copy")))
    assert copy.fingerprint == backbone.fingerprint
    assert copy.image_config == backbone.image_config
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(copy.model.state_dict()[name], value), name


def test_fingerprints_differ_with_weights_and_with_image_settings(tiny_clip: Path, tmp_path: Path) -> None:
    first = load_backbone(EncoderConfig(model=str(tiny_clip))).fingerprint
    assert load_backbone(EncoderConfig(model=str(write_tiny_clip(tmp_path / "a", seed=1)))).fingerprint != first
    shutil.copytree(tiny_clip, tmp_path / "b")
    config = tmp_path / "b" / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.25", "0.26"))
    assert load_backbone(EncoderConfig(model=str(tmp_path / "b"))).fingerprint != first


def test_everything_is_frozen_and_no_parameter_is_a_scalar(tiny_clip: Path) -> None:
    backbone = load_backbone(EncoderConfig(model=str(tiny_clip)))
    assert not backbone.model.training
    for name, parameter in backbone.model.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.dim() > 0, name


def test_images_of_any_shape_and_mode_become_bytes_of_the_encoders_size(tiny_clip: Path) -> None:
    backbone = load_backbone(EncoderConfig(model=str(tiny_clip)))
    for mode, size in (("RGB", (40, 20)), ("L", (16, 16)), ("RGBA", (7, 90))):
        pixels = backbone.load_image(Image.new(mode, size))
        assert pixels.shape == (3, 16, 16)
        assert pixels.dtype == torch.uint8
    gradient = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (1, 32, 3)))
    assert (backbone.load_image(gradient).float().mean(dim=(0, 2)).diff() > 0).all()


def test_an_encoder_that_changed_since_is_refused_with_both_fingerprints(tiny_clip: Path) -> None:
    made = {"model": str(tiny_clip), "pretrained": None, "fingerprint": "0" * 64}
    with pytest.raises(UserError, match=r"is [0-9a-f]{12}, but the features came from 000000000000; restore"):
        load_backbone_of(made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EncoderConfig(model="ViT-B-33"), "neither a folder nor a model that open_clip knows; the nearest is ViT-B-32"),
        (EncoderConfig(model="ViT-B-32"), r"encoder.pretrained: ViT-B-32 needs a tag of its weights \(.*openai"),
        (EncoderConfig(model="ViT-B-32", pretrained="unknown"), "encoder.model: cannot load 'ViT-B-32'"),
    ],
)
def test_unknown_names_and_tags_are_refused(settings: EncoderConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(settings)


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(tiny_clip: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(tiny_clip, tmp_path / "clip")
    (tmp_path / "clip" / missing).unlink()
    with pytest.raises(UserError, match=f"has no {missing}"):
        load_backbone(EncoderConfig(model=str(tmp_path / "clip")))


def test_models_of_one_modality_are_refused_as_image_text_models_with_the_option_that_takes_them(
    tmp_path: Path,
) -> None:
    for model, option in (("hf:bert", "--encoder.text hf:bert"), ("timm:resnet18", "--encoder.image timm:resnet18")):
        with pytest.raises(UserError, match=f"encoder.model: got '{model}', expected .*; name this one by {option}$"):
            EncoderConfig(model=model)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    options = f"by --encoder.text hf:{tmp_path}, one of timm by --encoder.image timm:{tmp_path}$"
    with pytest.raises(UserError, match=rf"has no open_clip_config.json; .* {options}"):
        load_backbone(EncoderConfig(model=str(tmp_path)))


def test_weights_that_are_cut_or_of_another_model_are_refused(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip, tmp_path / "cut")
    weights = tmp_path / "cut" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load"):
        load_backbone(EncoderConfig(model=str(tmp_path / "cut")))
    write_tiny_clip(tmp_path / "other", width=48)
    shutil.copy(tiny_clip / "open_clip_model.safetensors", tmp_path / "other" / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="cannot load"):
        load_backbone(EncoderConfig(model=str(tmp_path / "other")))


def test_weights_in_a_pickle_are_read_without_running_code(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip, tmp_path / "bin")
    state = load_file(tmp_path / "bin" / "open_clip_model.safetensors")
    (tmp_path / "bin" / "open_clip_model.safetensors").unlink()
    weights = tmp_path / "bin" / "open_clip_pytorch_model.bin"
    torch.save(state, weights)
    settings = EncoderConfig(model=str(tmp_path / "bin"))
    assert load_backbone(settings).fingerprint == load_backbone(EncoderConfig(model=str(tiny_clip))).fingerprint
    torch.save(state | {"evil": _Evil(tmp_path / "ran")}, weights)
    with pytest.raises(UserError, match="cannot load"):
        load_backbone(settings)
    assert not (tmp_path / "ran").exists()


class _Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
