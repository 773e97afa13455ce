"""Separate encoders of images and texts: the same features as their libraries give, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.errors import UserError
from tests.conftest import optional
from tests.encoders.tiny_sources import IMAGES, TEXTS, TRANSFORMERS, write_image_encoder, write_text_encoder

NORMALIZE: dict[str, dict[str, Any]] = {"2_Normalize": {}}
DENSE = {"in_features": 24, "out_features": 10, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def _text(folder: Path, **settings: Any) -> Encoder:
    return Encoder(load_backbone(EncoderConfig(text=f"hf:{folder}", **settings)), ("text",))


def _rows(encoder: Encoder, texts: list[str]) -> Tensor:
    return encoder.encode(None, encoder.tokenize(texts))["text"].detach()


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(200, 180), (170, 300), (90, 70)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def _assert_same(found: Tensor, expected: Tensor) -> None:
    assert (1 - torch.cosine_similarity(found, expected, dim=1)).max() < 1e-6


def _slow_text_features(folder: Path, texts: list[str], pooling: str, max_length: int) -> Tensor:
    """One text at a time by transformers, pooled as written in words."""
    kind = (
        transformers.T5EncoderModel
        if "t5" in json.loads((folder / "config.json").read_text())["model_type"]
        else transformers.AutoModel
    )
    model, tokenizer = kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt").input_ids
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        positions = torch.arange(1.0, len(states) + 1)[:, None]
        pooled = {
            "mean": states.mean(dim=0),
            "cls": states[0],
            "lasttoken": states[-1],
            "max": states.max(dim=0).values,
            "mean_sqrt_len": states.sum(dim=0) / len(states) ** 0.5,
            "weightedmean": (states * positions).sum(dim=0) / positions.sum(),
        }
        rows.append(pooled[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [*((family, "lasttoken" if family == "mistral" else "mean") for family in TRANSFORMERS), ("bert", "cls"), ("bert", "max"),
     ("bert", "mean_sqrt_len"), ("bert", "weightedmean"), ("roberta", "lasttoken")],
)  # fmt: skip
def test_texts_of_every_family_and_pooling_are_encoded_as_by_transformers(
    tmp_path: Path, family: str, pooling: str
) -> None:
    folder = write_text_encoder(
        tmp_path / "text", family, pooling, files={"sentence_bert_config.json": {"max_seq_length": 9}}
    )
    encoder = _text(folder)
    _assert_same(_rows(encoder, TEXTS), _slow_text_features(folder, TEXTS, pooling, max_length=9))
    assert encoder.backbone.tokenized(TEXTS)[1] == 1
    save_backbone(encoder.backbone, tmp_path / "copy")
    copy = load_backbone(EncoderConfig(model=str(tmp_path / "copy")))
    assert copy.fingerprint == encoder.backbone.fingerprint
    assert torch.equal(_rows(Encoder(copy, ("text",)), TEXTS), _rows(encoder, TEXTS))


def test_texts_are_encoded_as_by_sentence_transformers(tmp_path: Path) -> None:
    library = optional("sentence_transformers")
    files = {
        "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "query : ", "passage": "passage : "}},
    }
    folder = write_text_encoder(
        tmp_path / "text", "mpnet", "mean", behind={"2_Dense": DENSE, "3_Normalize": {}}, files=files
    )
    pooling = folder / "1_Pooling" / "config.json"
    reference = library.SentenceTransformer(str(folder), device="cpu")
    _assert_same(_rows(_text(folder), TEXTS), torch.tensor(reference.encode(TEXTS)))
    wanted = torch.tensor(reference.encode(TEXTS, prompt_name="passage"))
    _assert_same(_rows(_text(folder, prompt_name="passage"), TEXTS), wanted)
    assert torch.equal(
        _rows(_text(folder, prefix="passage : "), TEXTS), _rows(_text(folder, prompt_name="passage"), TEXTS)
    )
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "include_prompt": False}))
    reference = library.SentenceTransformer(str(folder), device="cpu")
    without = torch.tensor(reference.encode(TEXTS, prompt_name="passage"))
    _assert_same(_rows(_text(folder, prompt_name="passage"), TEXTS), without)
    assert (1 - torch.cosine_similarity(without, wanted)).max() > 1e-4
    with pytest.raises(
        UserError, match=r"prompt_name: got 'pasage', but .* lists query 'query : ', passage 'passage : '"
    ):
        _text(folder, prompt_name="pasage")


@pytest.mark.parametrize("architecture", IMAGES)
def test_images_of_every_family_are_encoded_as_by_timm(tmp_path: Path, architecture: str) -> None:
    folder = write_image_encoder(tmp_path / "image", architecture)
    backbone = load_backbone(EncoderConfig(image=f"timm:{folder}"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        expected = model(torch.stack([transform(picture) for picture in _pictures()]))
    images = torch.stack([backbone.load_image(picture) for picture in _pictures()])
    _assert_same(Encoder(backbone, ("image",)).encode(images, None)["image"], expected)
    save_backbone(backbone, tmp_path / "copy")
    assert load_backbone(EncoderConfig(model=str(tmp_path / "copy"))).fingerprint == backbone.fingerprint


def test_real_pretrained_encoders_give_what_their_libraries_give(shared_data: Any) -> None:
    images, texts = shared_data("efficientnet-lite0"), shared_data("minilm-l6")
    backbone = load_backbone(EncoderConfig(image=f"timm:{images}", text=f"hf:{texts}"))
    encoder = Encoder(backbone, ("image", "text"))
    assert encoder.widths == {"image": 1280, "text": 384}
    long = ["the quick brown fox " * 100, "a film about a dog"]
    pixels = torch.stack([backbone.load_image(picture) for picture in _pictures()[:2]])
    found = encoder.encode(pixels, encoder.tokenize(long))
    _assert_same(found["text"], _slow_text_features(texts, long, "mean", max_length=256))
    assert backbone.tokenized(long)[1] == 1
    model = timm.create_model(f"local-dir:{images}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        _assert_same(found["image"], model(torch.stack([transform(picture) for picture in _pictures()[:2]])))


def test_features_of_a_text_do_not_depend_on_the_texts_beside_it(tmp_path: Path) -> None:
    for family, pooling in (("roberta", "mean"), ("mistral", "lasttoken")):
        encoder = _text(write_text_encoder(tmp_path / family, family, pooling))
        alone = torch.cat([_rows(encoder, [text]) for text in TEXTS])
        torch.testing.assert_close(_rows(encoder, TEXTS), alone, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(_rows(encoder, [""])).all()


def test_raw_features_keep_their_length_also_after_saving(tmp_path: Path) -> None:
    settings = EncoderConfig(text=f"hf:{write_text_encoder(tmp_path / 'text')}")
    unit, raw = load_backbone(settings), load_backbone(settings, raw=True)
    assert raw.fingerprint != unit.fingerprint
    rows = _rows(Encoder(raw, ("text",)), TEXTS)
    assert (rows.norm(dim=1) - 1).abs().min() > 0.01
    torch.testing.assert_close(rows / rows.norm(dim=1, keepdim=True), _rows(Encoder(unit, ("text",)), TEXTS))
    save_backbone(raw, tmp_path / "copy")
    copy = load_backbone(EncoderConfig(model=str(tmp_path / "copy")))
    assert copy.raw
    assert copy.fingerprint == raw.fingerprint


def test_what_is_saved_may_be_read_by_others_as_the_umask_allows(tiny_clip: Path, tmp_path: Path) -> None:
    image, text = write_image_encoder(tmp_path / "image"), write_text_encoder(tmp_path / "text")
    pair = EncoderConfig(image=f"timm:{image}", text=f"hf:{text}")
    for number, settings in enumerate((EncoderConfig(model=str(tiny_clip)), EncoderConfig(model="vlmo:tiny"), pair)):
        saved = tmp_path / str(number)
        save_backbone(load_backbone(settings), saved)
        (saved / "new").touch()
        modes = {path.name: path.stat().st_mode for path in saved.rglob("*") if path.is_file()}
        assert {name for name, mode in modes.items() if mode != modes["new"]} == set()


def test_fingerprints_follow_all_that_features_depend_on(tmp_path: Path) -> None:
    def fingerprint(folder: Path, **settings: Any) -> str:
        return load_backbone(EncoderConfig(text=f"hf:{folder}", **settings)).fingerprint

    first = write_text_encoder(tmp_path / "a")
    found = {
        fingerprint(first),
        fingerprint(first, prefix="passage : "),
        fingerprint(write_text_encoder(tmp_path / "cls", pooling="cls")),
        fingerprint(write_text_encoder(tmp_path / "n", behind=NORMALIZE)),
        fingerprint(write_text_encoder(tmp_path / "l", files={"sentence_bert_config.json": {"max_seq_length": 7}})),
        fingerprint(write_text_encoder(tmp_path / "d", behind={"2_Dense": DENSE})),
    }
    assert len(found) == 6
    assert fingerprint(shutil.copytree(first, tmp_path / "b")) in found


def _spoil(folder: Path, name: str, **changed: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changed if isinstance(content, dict) else changed["content"]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: _spoil(at, "config.json", auto_map={"AutoModel": "code.Model"}), r"asks for code of its own \(auto_map\)"),
        (lambda at: _spoil(at, "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}), "code of its own"),
        (lambda at: _spoil(at, "modules.json", content=[{"type": "custom_st.Transformer", "path": ""}]), "lists Transformer;"),
        (lambda at: _spoil(at, "modules.json", content=[
            {"type": "sentence_transformers.models.Transformer", "path": "../other"},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        ]), "names the path '../other', expected a folder directly inside"),
        (lambda at: _spoil(at, "1_Pooling/config.json", pooling_mode="best"), "asks for pooling 'best', expected one of cls"),
        (lambda at: (at / "config.json").write_text("{"), "cannot (read|load)"),
        (lambda at: (at / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda at: (at / "model.safetensors").write_bytes(b"x" * 100), "cannot load"),
        (lambda at: (at / "tokenizer.json").unlink(), "tokenizer|cannot load"),
        (lambda at: save_file({name: value for name, value in load_file(at / "model.safetensors").items()
                               if "layer.1" not in name}, at / "model.safetensors"), "lack .* of the model's"),
    ],
)  # fmt: skip
def test_a_text_folder_that_lacks_something_or_brings_code_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = write_text_encoder(tmp_path / "text")
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        load_backbone(EncoderConfig(text=f"hf:{folder}"))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("encoder.text: ")


def test_weights_in_pickles_are_never_read(tmp_path: Path) -> None:
    folder = write_text_encoder(tmp_path / "text")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights in other formats are not read"):
        load_backbone(EncoderConfig(text=f"hf:{folder}"))


def test_an_image_folder_that_is_incomplete_is_refused_by_one_line(tmp_path: Path) -> None:
    folder = write_image_encoder(tmp_path / "image")
    state = load_file(folder / "model.safetensors")
    first = next(name for name in state if name.endswith("conv.weight"))
    spoils: dict[str, Any] = {
        f"holds other weights .*for example {first}": lambda at: save_file(
            {name: value for name, value in state.items() if name != first}, at / "model.safetensors"
        ),
        "does not name an architecture": lambda at: _spoil(at, "config.json", architecture="vit_of_tomorrow"),
        "has no config.json": lambda at: (at / "config.json").unlink(),
        "has no model.safetensors": lambda at: (at / "model.safetensors").unlink(),
    }
    for number, (message, spoil) in enumerate(spoils.items()):
        spoil(shutil.copytree(folder, tmp_path / str(number)))
        with pytest.raises(UserError, match=message):
            load_backbone(EncoderConfig(image=f"timm:{tmp_path / str(number)}"))
    gray = write_image_encoder(tmp_path / "gray", in_chans=1)
    with pytest.raises(UserError, match="takes images of 1 channels, expected 3"):
        load_backbone(EncoderConfig(image=f"timm:{gray}"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "encoder: got {}, expected --encoder.model, or --encoder.image and --encoder.text"),
        ({"model": "ViT-B-32", "text": "hf:x"}, "expected --encoder.model, or"),
        ({"image": "hf:x"}, "encoder.image: got 'hf:x', expected timm:NAME or timm:FOLDER"),
        ({"text": "minilm"}, "encoder.text: got 'minilm', expected hf:NAME or hf:FOLDER"),
        ({"image": "timm:x", "prefix": "query: "}, "encoder.prefix: got 'query: ', expected --encoder.text"),
        ({"text": "hf:x", "prefix": "a", "prompt_name": "b"}, "either a prefix or the name of one"),
        ({"text": "hf:x", "pretrained": "openai"}, "encoder.pretrained: got 'openai'"),
    ],
)  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        EncoderConfig(**settings)
    assert message in str(refused.value)
