"""Every family of models that open_clip builds is read as open_clip itself reads it, offline, from a local folder."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources import open_clip_texts
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.encoders.sources.open_clip_texts import OpenClipTexts
from ptmrec_dist.errors import UserError
from tests.encoders.families import CONFIGS, write_family

TEXTS = [
    "a red cup",
    "two",
    "the long way home over the hills and far away from everything else, a film about a dog",
    "",
]


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((90, 60, 3), (64, 64, 3), (50, 120, 3), (16, 16, 3))
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family to folder."""
    root = tmp_path_factory.mktemp("families")
    return {family: write_family(root / family, family) for family in CONFIGS}


def _read(folder: Path, texts: list[str] = TEXTS, pictures: list[Image.Image] | None = None) -> dict[str, Tensor]:
    backbone = load_backbone(EncoderConfig(model=str(folder)))
    encoder = Encoder(backbone, ("image", "text"))
    images = torch.stack([backbone.load_image(picture) for picture in pictures or _pictures()])
    with torch.no_grad():
        return encoder.encode(images, encoder.tokenize(texts))


def _own(folder: Path, family: str, texts: list[str]) -> dict[str, Tensor]:
    """What open_clip's own loader, transform, tokenizer and `encode_*` give."""
    text = CONFIGS[family]["text_cfg"]
    options: dict[str, Any] = {}
    if "hf_model_name" in text:  # open_clip would ask the hub for the name
        options["text_cfg"] = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(picture) for picture in _pictures()]))
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
    return {"image": F.normalize(image, dim=1), "text": F.normalize(text, dim=1)}


@pytest.mark.parametrize("family", CONFIGS)
def test_features_of_every_family_are_those_of_open_clip(families: dict[str, Path], family: str) -> None:
    for texts in (TEXTS, TEXTS[:2]):  # the short ones alone lose their padding where the tower ignores it
        features, own = _read(families[family], texts), _own(families[family], family, texts)
        for modality, rows in own.items():
            assert F.cosine_similarity(features[modality], rows).min() >= 1 - 1e-6, modality
            assert not torch.allclose(rows[0], rows[1], atol=1e-4), (
                f"{modality}: a reference that distinguishes nothing"
            )


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_an_encoder_of_every_family_written_and_read_is_the_same(
    families: dict[str, Path], tmp_path: Path, family: str
) -> None:
    backbone = load_backbone(EncoderConfig(model=str(families[family])))
    save_backbone(backbone, tmp_path / "copy")
    assert load_backbone(EncoderConfig(model=str(tmp_path / "copy"))).fingerprint == backbone.fingerprint
    for modality, rows in _read(families[family]).items():
        assert torch.equal(_read(tmp_path / "copy")[modality], rows)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("vit", lambda config: config["model_cfg"].update(quick_gelu=True)),
        ("vit", lambda config: config["model_cfg"]["text_cfg"].update(heads=3)),
        ("convnext", lambda config: config["preprocess_cfg"].update(interpolation="bilinear")),
        ("xlm_roberta", lambda config: config["model_cfg"]["text_cfg"].update(context_length=12)),
    ],
)
def test_whatever_changes_features_changes_the_fingerprint(
    families: dict[str, Path], tmp_path: Path, family: str, change: Any
) -> None:
    first = load_backbone(EncoderConfig(model=str(families[family]))).fingerprint
    folder = write_family(tmp_path / family, family)
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert load_backbone(EncoderConfig(model=str(folder))).fingerprint == first
    change(config)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_backbone(EncoderConfig(model=str(folder))).fingerprint != first


def test_a_tokenizer_of_other_words_changes_the_fingerprint(families: dict[str, Path], tmp_path: Path) -> None:
    first = load_backbone(EncoderConfig(model=str(families["bert"]))).fingerprint
    folder = write_family(tmp_path / "bert", "bert")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cup"', '"mug"'))
    assert load_backbone(EncoderConfig(model=str(folder))).fingerprint != first


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("vit", {"vision_cfg": None}, "has no vision_cfg|is not a configuration of open_clip"),
        ("vit", {"embed_dim": 21}, "cannot load .*size mismatch"),
        ("vit", {"vision_cfg": {"unheard_of": 1}}, "cannot load .*unheard_of"),
        ("siglip", {"vision_cfg": {"image_size": 64}}, r"its VisionTransformer does not run \(.*64.*32"),
        ("convnext", {"vision_cfg": {"timm_model_name": "no_such_model"}}, "cannot load .*no_such_model"),
        ("bert", {"text_cfg": {"hf_tokenizer_name": ""}}, "hf_model_name without hf_tokenizer_name"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    folder = write_family(tmp_path / family, family)
    config = json.loads((folder / "open_clip_config.json").read_text())
    for key, value in change.items():
        if isinstance(value, dict):
            config["model_cfg"][key].update(value)
        elif value is None:
            del config["model_cfg"][key]
        else:
            config["model_cfg"][key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"))
    assert "\n" not in str(caught.value)


def test_a_hugging_face_tower_without_its_files_or_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "bert", "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt9"}))
    with pytest.raises(UserError, match=r"has model_type 'gpt9'; .*needs a configuration of one of roberta, "):
        load_backbone(EncoderConfig(model=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="has model_type None"):
        load_backbone(EncoderConfig(model=str(folder)))


def test_code_that_comes_with_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "bert", "bert")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"from transformers import PreTrainedTokenizerFast\nopen({str(ran)!r}, 'w').close()\n"
        "class Evil(PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with contextlib.suppress(UserError):  # read as what it is without the code, or refused
        load_backbone(EncoderConfig(model=str(folder)))
    assert not ran.exists()


def test_no_items_give_no_rows_and_no_gradient_that_is_not_finite(families: dict[str, Path]) -> None:
    for family in ("xlm_roberta", "resnet", "coca"):
        encoder = Encoder(load_backbone(EncoderConfig(model=str(families[family]))), ("image", "text"))
        encoder.tune("full", None, torch.Generator())
        images = encoder.towers["image"].example[:0]
        features = encoder.encode(images, encoder.tokenize(["a"])[:0])
        sum(rows.sum() for rows in features.values()).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("method", ["prompt", "adapter"])
def test_what_works_inside_blocks_is_refused_of_a_tower_without_them(families: dict[str, Path], method: str) -> None:
    from tests.encoders.test_methods import SETTINGS

    encoder = Encoder(load_backbone(EncoderConfig(model=str(families["resnet"]))), ("image", "text"))
    message = rf"got {method}, but the image tower \(ModifiedResNet\) has no .*; expected lora, last_n, full or none"
    with pytest.raises(UserError, match=message):
        encoder.tune(method, SETTINGS[method], torch.Generator())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(("clean", "most_words"), [("lower", 2), ("canonicalize", 2**17), ("whitespace", 5)])
def test_texts_have_the_ids_that_open_clip_gives_and_those_cut_off_are_counted(
    clean: str, most_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip_texts, "_MOST_WORDS", most_words)  # words are forgotten
    words = [
        "a red cup",
        "don't",
        "Ünïcode ☃ naïve",
        "&lt;b&gt; <start_of_text>",
        "1234567",
        "über_all!!! ...",
        "\u4f60\u597d",
    ]
    texts = ["", *words, *(" ".join(words * number) for number in (1, 2, 5))]
    for length in (4, 12, 40):
        tokenizer = open_clip.SimpleTokenizer(context_length=length, clean=clean)
        read = OpenClipTexts(tokenizer)
        for _ in range(2):  # words that were met before, too
            ids, cut = read(texts)
            assert torch.equal(ids, tokenizer(texts))
            assert cut == sum(len(tokenizer.encode(text)) + 2 > length for text in texts)
        assert read([])[0].shape == (0, length)
    masked = open_clip.SimpleTokenizer(context_length=12, reduction_mask="simple")
    ids, cut = OpenClipTexts(masked)(texts[:3])
    assert ids.shape == (3, 12)
    assert cut == 0
