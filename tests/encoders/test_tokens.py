"""States of tokens: those that the model itself pools to features, with what was tuned and without prompts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.sources.vlmo.towers import scaled
from ptmrec_dist.encoders.tower import TokenStates
from ptmrec_dist.errors import UserError
from tests.encoders.families import write_family
from tests.encoders.test_methods import SETTINGS
from tests.encoders.tiny_sources import write_image_encoder, write_text_encoder

TEXTS = ["a red cup", "two", "the long way home over the hills and far away from everything else, a film about a dog"]
OWN = [*("vit", "clipa", "coca", "worldwide", "siglip", "siglip_text", "timm_vit", "eva02", "pe", "vitamin"),
       *("mobileclip_vit", "xlm_roberta", "bert", "mt5")]  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    return lambda family: root / family if (root / family).is_dir() else write_family(root / family, family)


def _encoder(settings: EncoderConfig, method: str = "none") -> Encoder:
    backbone = load_backbone(settings)
    encoder = Encoder(backbone, backbone.modalities)
    encoder.tune(method, SETTINGS[method], torch.Generator().manual_seed(0))
    return encoder.eval()


def _inputs(encoder: Encoder) -> tuple[Tensor | None, Tensor | None]:
    images, noise = None, torch.Generator().manual_seed(3)
    if "image" in encoder.towers:
        size = encoder.towers["image"].example.shape[1:]
        images = torch.randint(0, 256, (len(TEXTS), *size), dtype=torch.uint8, generator=noise)
    return images, encoder.tokenize(TEXTS) if "text" in encoder.towers else None


@torch.no_grad()
def _tokens(encoder: Encoder) -> dict[str, TokenStates]:
    return encoder.encode(*_inputs(encoder), tokens=True)


def _pooled(model: Any, modality: str, found: TokenStates, ids_BN: Tensor) -> Tensor:
    """Pool states by the layers of a model of open_clip that follow them."""
    states_BND = found.states
    if modality == "image":
        visual = model.visual
        if hasattr(visual, "trunk"):
            return visual.head(visual.trunk.forward_head(states_BND))
        if visual.attn_pool is not None or visual.final_ln_after_pool:
            return visual._pool(states_BND)[0] @ visual.proj
        return visual._global_pool(states_BND)[0] @ visual.proj
    text = getattr(model, "text", model)
    if hasattr(text, "pooler"):
        output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states_BND)
        if isinstance(text.pooler, open_clip.hf_model.ClsPooler):  # BERT's own pooler
            return text.proj(text.transformer.pooler(states_BND))
        return text.proj(text.pooler(output, found.mask))
    if getattr(text, "cls_emb", None) is not None:
        pooled = text.ln_final(states_BND[:, -1])
    else:
        kind = getattr(text, "text_pool_type", None) or text.pool_type
        eos = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
        pooled = open_clip.transformer.text_global_pool(states_BND, ids_BN, kind, eos)
    return text.text_projection(pooled) if callable(text.text_projection) else pooled @ text.text_projection


@pytest.mark.parametrize("family", OWN)
def test_pooling_the_tokens_gives_the_features_and_padding_is_masked(
    families: Callable[[str], Path], family: str
) -> None:
    encoder = _encoder(EncoderConfig(model=str(families(family))), "last_n")
    images, ids_BN = _inputs(encoder)
    assert ids_BN is not None
    with torch.no_grad():
        features, tokens = encoder.encode(images, ids_BN), encoder.encode(images, ids_BN, tokens=True)
        for modality, found in tokens.items():
            rows_BD = F.normalize(_pooled(encoder.model, modality, found, ids_BN), dim=1)
            torch.testing.assert_close(rows_BD, features[modality], rtol=1e-5, atol=1e-5)
            assert found.mask.shape == found.states.shape[:2]
            assert found.mask.dtype == torch.bool
            assert found.states.shape[2] == encoder.token_widths()[modality]
            assert not torch.allclose(found.states.norm(dim=2), torch.ones(()), atol=0.1)
        assert tokens["image"].mask.all()
        if family in ("vit", "worldwide"):
            assert torch.equal(tokens["text"].mask, ids_BN != 0)
        alone = encoder.encode(images[:1] if images is not None else None, encoder.tokenize(TEXTS[:1]), tokens=True)
        read = alone["text"].mask[0].sum()
        assert tokens["text"].mask[0].sum() == read  # whatever padding is needed beside longer texts
        first = tokens["text"].states[0][tokens["text"].mask[0]]
        torch.testing.assert_close(first, alone["text"].states[0][alone["text"].mask[0]], rtol=1e-4, atol=1e-5)


def test_tokens_of_published_texts_are_the_last_hidden_states_of_transformers(tmp_path: Path) -> None:
    for family in ("bert", "mpnet", "mistral", "t5"):
        folder = write_text_encoder(tmp_path / family, family)
        encoder = _encoder(EncoderConfig(text=f"hf:{folder}"))
        found = _tokens(encoder)["text"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        read = tokenizer(TEXTS, padding=True, return_tensors="pt")
        kind = transformers.T5EncoderModel if family == "t5" else transformers.AutoModel
        with torch.no_grad():
            own = kind.from_pretrained(folder).eval()(**{name: read[name] for name in ("input_ids", "attention_mask")})
        assert torch.equal(found.mask, read["attention_mask"].bool())
        kept = found.mask
        torch.testing.assert_close(found.states[kept], own.last_hidden_state[kept], rtol=1e-5, atol=1e-5)


def test_tokens_of_images_are_those_of_timm(tmp_path: Path) -> None:
    folder = write_image_encoder(tmp_path / "vit", "test_vit")
    encoder = _encoder(EncoderConfig(image=f"timm:{folder}"))
    images, _ = _inputs(encoder)
    assert images is not None
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        own = model.forward_features((images / 255 - mean) / std)
    torch.testing.assert_close(_tokens(encoder)["image"].states, own, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_vlmo_are_its_final_states() -> None:
    encoder = _encoder(EncoderConfig(model="vlmo:tiny"))
    images, ids_BN = _inputs(encoder)
    assert images is not None
    assert ids_BN is not None
    found = _tokens(encoder)
    with torch.no_grad():
        assert torch.equal(found["image"].states, encoder.model.encode_image(scaled(images)))
        assert torch.equal(found["text"].states, encoder.model.encode_text(ids_BN))
        for modality, rows_BD in encoder.encode(images, ids_BN).items():
            assert torch.equal(F.normalize(found[modality].states[:, 0], dim=1), rows_BD)


def _sources(families: Callable[[str], Path], folder: Path) -> Iterator[EncoderConfig]:
    yield from (EncoderConfig(model=str(families(family))) for family in ("vit", "coca", "siglip", "xlm_roberta"))
    yield EncoderConfig(model="vlmo:tiny")
    image, text = write_image_encoder(folder / "image", "test_vit"), write_text_encoder(folder / "text")
    yield EncoderConfig(image=f"timm:{image}", text=f"hf:{text}")


def test_tuning_moves_tokens_with_their_gradient_and_prompts_are_not_among_them(
    families: Callable[[str], Path], tmp_path: Path
) -> None:
    for settings in _sources(families, tmp_path):
        plain = _tokens(_encoder(settings))
        for method in ("prompt", "adapter"):
            encoder = _encoder(settings, method)
            for name, value in encoder.tuned_state().items():
                value.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
            for modality, found in _tokens(encoder).items():
                assert found.states.shape == plain[modality].states.shape, (settings, method)
                assert torch.equal(found.mask, plain[modality].mask)
                assert not torch.allclose(found.states, plain[modality].states, atol=1e-3), (settings, method, modality)
            states = [found.states.sum() for found in encoder.encode(*_inputs(encoder), tokens=True).values()]
            torch.stack(states).sum().backward()
            trained = [parameter.grad for parameter in encoder.parameters() if parameter.requires_grad]
            assert all(gradient is not None for gradient in trained), (settings, method)


def test_a_common_space_projects_features_and_leaves_tokens_as_they_are(tmp_path: Path) -> None:
    image, text = write_image_encoder(tmp_path / "image", "test_vit"), write_text_encoder(tmp_path / "text")
    pair = load_backbone(EncoderConfig(image=f"timm:{image}", text=f"hf:{text}"))
    plain = Encoder(pair, pair.modalities)
    projected = Encoder(pair.projected(8, torch.Generator()), pair.modalities)
    for modality, found in _tokens(projected).items():
        assert torch.equal(found.states, _tokens(plain)[modality].states)


def test_no_items_have_no_tokens_and_low_precision_gives_float32(families: Callable[[str], Path]) -> None:
    backbone = load_backbone(EncoderConfig(model=str(families("vit"))))
    encoder = Encoder(backbone, backbone.modalities, precision="bf16")
    images, ids_BN = _inputs(encoder)
    assert images is not None
    assert ids_BN is not None
    for modality, found in encoder.encode(images, ids_BN, tokens=True).items():
        assert found.states.dtype == torch.float32
        none = encoder.encode(images[:0], ids_BN[:0], tokens=True)[modality]
        assert none.states.shape == (
            0,
            encoder.towers[modality].example.shape[1] if modality == "text" else 17,
            encoder.token_widths()[modality],
        )
        assert len(none.mask) == 0


@pytest.mark.parametrize("source", ["resnet", "convnext", "mobileclip", "maxvit", "timm"])
def test_an_encoder_without_tokens_is_refused(families: Callable[[str], Path], tmp_path: Path, source: str) -> None:
    if source == "timm":
        encoder = _encoder(EncoderConfig(image=f"timm:{write_image_encoder(tmp_path / 'cnn')}"))
    else:
        encoder = _encoder(EncoderConfig(model=str(families(source))))
    message = r"encoder: the image tower \(\w+\) has no sequence of tokens; expected a transformer: a ViT of open_clip or timm"
    with pytest.raises(UserError, match=message):
        encoder.token_widths()
    with pytest.raises(UserError, match=message):
        _tokens(encoder)
