"""What was tuned is saved and read back: bit for bit, with every kind of encoder, and with nothing missing or surplus."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.config.tuning import METHODS
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.errors import UserError
from tests.encoders.families import write_family
from tests.encoders.test_methods import SETTINGS
from tests.encoders.tiny_sources import IMAGES, TRANSFORMERS, write_image_encoder, write_text_encoder
from tests.encoders.vlmo_files import SIZES, published_beit3, write_published

TEXTS = ["a red cup", "film about a dog", "the long way home over hills and far away from everything else"]
MERGED = ("lora", "last_n", "full")


def _pair(folder: Path) -> EncoderConfig:
    image, text = write_image_encoder(folder / "image", "test_vit"), write_text_encoder(folder / "text", "bert")
    return EncoderConfig(image=f"timm:{image}", text=f"hf:{text}")


def _beit3(folder: Path) -> EncoderConfig:
    sizes = SIZES | {"model_type": "beit3", "positions": 20, "pad_id": 0}
    return EncoderConfig(model=f"vlmo:{write_published(folder, published_beit3(), sizes)}")


SOURCES: dict[str, Callable[[Path], EncoderConfig]] = {
    **{kind: lambda folder, kind=kind: EncoderConfig(text=f"hf:{write_text_encoder(folder, kind)}") for kind in TRANSFORMERS},
    **{kind: lambda folder, kind=kind: EncoderConfig(image=f"timm:{write_image_encoder(folder, kind)}") for kind in IMAGES},
    **{kind: lambda folder, kind=kind: EncoderConfig(model=str(write_family(folder, kind)))
       for kind in ("vit", "resnet")},
    "vlmo": lambda folder: EncoderConfig(model="vlmo:tiny"),
    "beit3": _beit3,
    "pair": _pair,
}  # fmt: skip


def _tuned(backbone: Backbone, method: str) -> Encoder | None:
    """An encoder with random values in all that the method tunes, in the towers that support it; None if none does."""
    encoder, settings = Encoder(backbone, backbone.modalities), SETTINGS[method]
    fitting = [name for name, tower in encoder.towers.items() if METHODS[method].load().fits(tower)]
    if not fitting:
        return None
    if len(fitting) < len(encoder.towers):
        settings = replace(settings, towers=fitting[0])
    encoder.tune(method, settings, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    for value in encoder.tuned_state().values():
        value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return encoder.eval()


@torch.no_grad()
def _features(encoder: Encoder) -> dict[str, Tensor]:
    images = None
    if "image" in encoder.towers:
        size = encoder.towers["image"].example.shape[1:]
        images = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return encoder.encode(images, encoder.tokenize(TEXTS) if "text" in encoder.towers else None)


def _methods(source: EncoderConfig) -> Iterator[tuple[str, Encoder]]:
    for method in ("prompt", "lora", "adapter", "last_n", "full"):
        encoder = _tuned(load_backbone(source), method)
        if encoder is not None:
            yield method, encoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_features_are_equal_bit_for_bit_after_reading_what_was_saved(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path / "source")
    save_backbone(load_backbone(source), tmp_path / "copy")
    path, methods = tmp_path / "tuned.safetensors", []
    for method, encoder in _methods(source):
        expected = _features(encoder)
        save_tensors(path, encoder.tuned_state(), encoder.description)
        again = Encoder(load_backbone(EncoderConfig(model=str(tmp_path / "copy"))), tuple(encoder.towers))
        assert any(not torch.equal(rows, expected[name]) for name, rows in _features(again).items()), method
        again.load_tuned(path)
        for name, rows in _features(again.eval()).items():
            assert torch.equal(rows, expected[name]), (method, name)
        merged = load_encoder(tmp_path / "copy", path, tuple(encoder.towers))
        for name, rows in _features(merged).items():
            # Merged updates round, and so does torch's attention where no weight requires a gradient.
            torch.testing.assert_close(rows, expected[name], rtol=1e-4, atol=1e-5)
        if method in MERGED:
            save_backbone(merged.backbone, tmp_path / method)
            saved = Encoder(load_backbone(EncoderConfig(model=str(tmp_path / method))), tuple(encoder.towers))
            for name, rows in _features(saved.eval()).items():
                assert torch.equal(rows, _features(merged)[name]), (method, name)
        methods.append(method)
    assert set(methods) >= {"lora", "last_n", "full"}


@pytest.mark.parametrize("kind", ["vlmo", "pair", "bert"])
def test_missing_and_surplus_tensors_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path / "source")
    path = tmp_path / "tuned.safetensors"
    for method, encoder in _methods(source):
        whole = encoder.tuned_state()
        first, *rest = sorted(whole)
        lacks = rf"it lacks 1 of the {len(whole)} tensors that are tuned here \({first}\); tune again"
        damaged = {
            lacks: {name: whole[name] for name in rest},
            r"it has 1 of which none is tuned here \(model\.more\)": {**whole, "model.more": torch.ones(2)},
            rf"damaged: {first} is \(3, 3\) instead of": {**whole, first: torch.ones(3, 3)},
        }
        for message, state in damaged.items():
            save_tensors(path, state, encoder.description)
            backbone = load_backbone(source)
            with pytest.raises(UserError, match=message) as raised:
                Encoder(backbone, backbone.modalities).load_tuned(path)
            assert "\n" not in str(raised.value), method


@pytest.mark.slow
def test_one_tower_takes_its_part_of_what_was_tuned_in_both(tmp_path: Path) -> None:
    source, path = _pair(tmp_path), tmp_path / "tuned.safetensors"
    for method, encoder in _methods(source):
        save_tensors(path, encoder.tuned_state(), encoder.description)
        for name, rows in _features(encoder).items():
            alone = Encoder(load_backbone(source), (name,))
            alone.load_tuned(path)
            assert torch.equal(_features(alone)[name], rows), (method, name)
            state = {key: value for key, value in load_file(path).items() if f".{name}." not in key}
            save_tensors(tmp_path / "other.safetensors", state, encoder.description)
            with pytest.raises(UserError, match="lacks"):
                Encoder(load_backbone(source), (name,)).load_tuned(tmp_path / "other.safetensors")


def test_files_of_earlier_versions_are_read_under_the_names_of_today(tmp_path: Path) -> None:
    source, path = SOURCES["vit"](tmp_path / "source"), tmp_path / "tuned.safetensors"
    former = {"model": "clip", "attached": "prompts"}
    for method in ("prompt", "last_n"):
        encoder = _tuned(load_backbone(source), method)
        assert encoder is not None
        state = {
            former[name.partition(".")[0]] + name[name.index(".") :]: value
            for name, value in encoder.tuned_state().items()
        }
        save_tensors(path, state, encoder.description)
        again = Encoder(load_backbone(source), ("image", "text"))
        again.load_tuned(path)
        for name, rows in _features(again.eval()).items():
            assert torch.equal(rows, _features(encoder)[name]), (method, name)
