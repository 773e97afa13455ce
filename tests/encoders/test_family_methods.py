"""Every tuning method in every family that supports it: all of it affects the features, and it is saved and loaded."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, MethodConfig
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.errors import UserError
from tests.encoders.families import CONFIGS, write_family
from tests.encoders.test_methods import SETTINGS

TEXTS = ["a red cup", "two", "the long way home over the hills"]
TAKES_ALL = [
    *(
        "vit_336",
        "worldwide",
        "clipa",
        "siglip_text",
        "layer_scale",
        "qk_norm",
        "coca",
        "coca_no_causal_mask",
        "siglip",
    ),
    *("timm_vit", "timm_gap", "eva", "eva02", "pe", "vitamin", "mobileclip_vit"),
    *("xlm_roberta", "roberta", "bert", "mt5", "m2m_100"),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: write_family(root / family, family) for family in CONFIGS}


def _encoder(folder: Path, method: str, settings: MethodConfig | None = None, **options: bool) -> Encoder:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"), **options)
    encoder.tune(method, settings or SETTINGS[method], torch.Generator().manual_seed(1))
    return encoder


def _encode(encoder: Encoder, trimmed: bool = True) -> Tensor:
    height, width = encoder.towers["image"].example.shape[2:]
    noise = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(TEXTS), 3, height, width), dtype=torch.uint8, generator=noise)
    tokens = (encoder.tokenize if trimmed else encoder.backbone.tokenize)(TEXTS)
    return torch.cat(list(encoder.encode(images, tokens).values()))


def _train(encoder: Encoder) -> dict[str, Tensor]:
    """Two steps: weights behind one that starts at zero have a gradient from the second on, which is returned."""
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        rows = _encode(encoder)
        target = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        (rows * target).sum().backward()
        optimizer.step()
    return {name: parameter.grad for name, parameter in trained.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt", "lora", "adapter", "last_n"])
@pytest.mark.parametrize("family", TAKES_ALL)
def test_a_method_starts_from_the_features_reaches_all_that_it_trains_and_is_read_back(
    families: dict[str, Path], tmp_path: Path, family: str, method: str
) -> None:
    encoder = _encoder(families[family], method)
    plain = _encode(_encoder(families[family], "none"))
    if method != "prompt":
        torch.testing.assert_close(_encode(encoder), plain, rtol=0, atol=1e-5)
    gradients = _train(encoder)
    idle = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not idle
    expected = _encode(encoder)
    assert F.cosine_similarity(expected, plain).max() < 1 - 1e-6
    torch.testing.assert_close(_encode(encoder, trimmed=False), expected, rtol=1e-4, atol=1e-5)
    save_tensors(tmp_path / "encoder.safetensors", encoder.tuned_state(), encoder.description)
    save_backbone(_encoder(families[family], "none").backbone, tmp_path / "backbone")
    frozen = Encoder(load_backbone(EncoderConfig(model=str(tmp_path / "backbone"))), ("image", "text"))
    frozen.load_tuned(tmp_path / "encoder.safetensors")
    assert torch.equal(_encode(frozen), expected)
    again = load_encoder(tmp_path / "backbone", tmp_path / "encoder.safetensors")
    torch.testing.assert_close(_encode(again), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [
        *itertools.product(
            ["coca", "eva02", "siglip", "xlm_roberta", "mt5"], ["prompt", "lora", "adapter", "last_n", "full"]
        ),
        *itertools.product(["convnext", "resnet"], ["last_n", "full", "lora"]),
    ],
)
def test_gradient_checkpointing_changes_no_gradient_of_any_family(
    families: dict[str, Path], family: str, method: str
) -> None:
    kept = _train(_encoder(families[family], method))
    for name, gradient in _train(_encoder(families[family], method, gradient_checkpointing=True)).items():
        torch.testing.assert_close(gradient, kept[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", TAKES_ALL)
def test_random_updates_of_every_projection_change_the_features(families: dict[str, Path], family: str) -> None:
    encoder = _encoder(families[family], "lora")
    plain = _encode(encoder)
    for name, value in encoder.tuned_state().items():
        if "lora_B" in name:
            value.normal_(0, 5, generator=torch.Generator().manual_seed(0))
            assert not torch.equal(_encode(encoder), plain), name
            value.zero_()
    assert torch.equal(_encode(encoder), plain)


def test_an_update_that_no_feature_depends_on_is_refused_and_leaves_the_tower_as_it_was(
    families: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptmrec_dist.encoders.tuning import lora

    monkeypatch.setattr(
        lora, "_open", lambda block: None
    )  # as if the weight that attention applies itself were unknown
    encoder = Encoder(load_backbone(EncoderConfig(model=str(families["eva"]))), ("image",))
    names = [name for name, _ in encoder.named_parameters()]
    with pytest.raises(
        UserError, match=r"features of the image tower \(Eva\) do not depend on an update of qkv; choose"
    ):
        encoder.tune("lora", SETTINGS["lora"], torch.Generator())
    assert [name for name, _ in encoder.named_parameters()] == names


@pytest.mark.parametrize("method", ["prompt", "adapter"])
def test_one_tower_is_tuned_alone_where_the_other_cannot_be(families: dict[str, Path], method: str) -> None:
    settings = SETTINGS[method]
    with pytest.raises(
        UserError,
        match=f"the image tower .* has no .*; expected lora, last_n, full or none, or --{method}.towers text$",
    ):
        _encoder(families["resnet"], method)
    encoder = _encoder(families["resnet"], method, replace(settings, towers="text"))
    before = _encode(encoder)
    _train(encoder)
    after = _encode(encoder)
    assert torch.equal(after[: len(TEXTS)], before[: len(TEXTS)])
    assert F.cosine_similarity(after[len(TEXTS) :], before[len(TEXTS) :]).max() < 1 - 1e-6


def test_tuning_a_tower_that_is_not_in_use_is_refused(families: dict[str, Path]) -> None:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(families["vit"]))), ("image",))
    settings = SETTINGS["adapter"]
    with pytest.raises(
        UserError, match=r"adapter.towers: got 'text', but only the image tower is in use; expected image or both"
    ):
        encoder.tune("adapter", replace(settings, towers="text"), torch.Generator())


def test_prompts_are_refused_where_position_biases_are_of_fixed_size(families: dict[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"VisionTransformerRelPos\) has no sequence of tokens of any length; expected lora, ada"
    ):
        _encoder(families["timm_relpos"], "prompt")
    for method in ("lora", "adapter"):
        assert _encoder(families["timm_relpos"], method).num_tuned


@pytest.mark.parametrize("method", ["lora", "last_n", "full"])
@pytest.mark.parametrize("family", ["resnet", "efficientnet", "mobileclip"])
def test_running_statistics_of_batch_normalisation_never_move(
    families: dict[str, Path], family: str, method: str
) -> None:
    encoder = _encoder(families[family], method).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    assert any("running_mean" in name for name in before)
    features = _encode(encoder)
    _train(encoder)
    assert F.cosine_similarity(_encode(encoder), features).max() < 1 - 1e-6
    for name, value in encoder.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("family", ["xlm_roberta", "bert", "mt5", "m2m_100"])
def test_prompts_see_no_padding(families: dict[str, Path], family: str) -> None:
    """A text alone, without padding, has the features that it has among longer ones."""
    encoder = _encoder(families[family], "prompt")
    encoder.attached["text"].vectors_PLD.data.mul_(20)
    together = _encode(encoder)[len(TEXTS) :]
    image = encoder.towers["image"].example
    for row, text in enumerate(TEXTS):
        alone = encoder.encode(image, encoder.tokenize([text]))["text"]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
