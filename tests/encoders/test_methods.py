"""Every tuning method: what it trains, that it starts from unchanged features, and that it is saved and loaded completely."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config import (
    AdapterConfig,
    EncoderConfig,
    FullConfig,
    LastNConfig,
    LoraConfig,
    MethodConfig,
    PromptConfig,
)
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from tests.tiny_clip import write_tiny_clip

TEXTS = ["a red cup", "two", "the long way home over the hills and far away from everything else", "blue"]
IMAGES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
SETTINGS: dict[str, MethodConfig] = {
    "prompt": PromptConfig(depth=2, length=3),
    "lora": LoraConfig(rank=2, alpha=6),
    "adapter": AdapterConfig(bottleneck=5),
    "last_n": LastNConfig(n=1),
    "full": FullConfig(),
    "none": MethodConfig(),
}
TRAINED = [method for method in SETTINGS if method != "none"]
# The tiny CLIP: 3 image blocks of width 32, 2 text blocks of width 24, an MLP 4 times as wide.
BLOCKS = {"image": (3, 32), "text": (2, 24)}


def _encoder(folder: Path, method: str, modalities: tuple[str, ...] = ("image", "text"), **options: Any) -> Encoder:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), modalities, **options)
    encoder.tune(method, SETTINGS[method], torch.Generator().manual_seed(1))
    return encoder


def _encode(encoder: Encoder) -> Tensor:
    tokens = encoder.tokenize(TEXTS)
    return torch.cat(list(encoder.encode(IMAGES, tokens).values()))


def _trainable(encoder: Encoder) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def _train(encoder: Encoder, steps: int = 3) -> None:
    """Enough that every tuned weight has moved: those behind one that starts at zero move from the second step on."""
    target = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(_trainable(encoder).values(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (_encode(encoder) * target).sum().backward()
        optimizer.step()


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), custom_text=request.param == "CustomTextCLIP")


def _block(width: int) -> int:
    """Weights of a block: fused attention, its output, the MLP, two layer norms."""
    return (width + 1) * 3 * width + (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width + 4 * width


def _count(method: str, layers: int, width: int) -> int:
    match method:
        case "prompt":
            return 2 * 3 * width
        case "lora":  # A and B of [3D, D], [D, D], [4D, D], [D, 4D]
            return layers * 2 * ((width + 3 * width) + (width + width) + 2 * (width + 4 * width))
        case "adapter":  # two bottlenecks of two layers with their biases
            return layers * 2 * (width * 5 + 5 + 5 * width + width)
        case "last_n":
            return _block(width)
        case "full":
            assert (layers, width) in BLOCKS.values()
            # Image: 8 x 8 patches, class token, 5 positions, norms before and after. Text: words, 12 positions, a norm.
            around = 3 * 64 * 32 + 32 + 5 * 32 + 4 * 32 if width == 32 else 49408 * 24 + 12 * 24 + 2 * 24
            return layers * _block(width) + around + width * 20  # and the projection
    return 0


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("modalities", [("image", "text"), ("image",), ("text",)])
def test_trained_are_exactly_as_many_parameters_as_the_method_has(
    folder: Path, method: str, modalities: tuple[str, ...]
) -> None:
    encoder = _encoder(folder, method, modalities)
    expected = sum(_count(method, *BLOCKS[modality]) for modality in modalities)
    assert encoder.num_tuned == expected
    assert sum(parameter.numel() for parameter in _trainable(encoder).values()) == expected
    assert sum(value.numel() for value in encoder.tuned_state().values()) == expected


def test_last_n_trains_the_blocks_nearest_to_the_features_and_nothing_behind_them(folder: Path) -> None:
    tuned = {name.split("resblocks.")[1].split(".")[0] for name in _encoder(folder, "last_n", ("image",)).tuned_state()}
    assert tuned == {"2"}
    tuned = {name.split("resblocks.")[1].split(".")[0] for name in _encoder(folder, "last_n", ("text",)).tuned_state()}
    assert tuned == {"1"}


@pytest.mark.parametrize("method", [method for method in SETTINGS if method != "prompt"])
def test_features_start_as_they_are_without_tuning(folder: Path, method: str) -> None:
    torch.testing.assert_close(_encode(_encoder(folder, method)), _encode(_encoder(folder, "none")), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", TRAINED)
def test_training_moves_everything_that_is_tuned_and_no_bit_of_the_rest(folder: Path, method: str) -> None:
    encoder = _encoder(folder, method)
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    features = _encode(encoder)
    _train(encoder)
    moved = {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(_trainable(encoder)) == set(encoder.tuned_state())
    assert F.cosine_similarity(_encode(encoder), features).max() < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_tuned_weights_are_saved_alone_and_give_an_equal_encoder(folder: Path, tmp_path: Path, method: str) -> None:
    encoder = _encoder(folder, method)
    _train(encoder)
    path = tmp_path / "encoder.safetensors"
    save_tensors(path, encoder.tuned_state(), encoder.description)
    assert path.stat().st_size < 4 * encoder.num_tuned + 20_000
    frozen = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"))
    frozen.load_tuned(path)
    assert torch.equal(_encode(frozen), _encode(encoder))
    again = load_encoder(folder, path)
    assert not _trainable(again)
    torch.testing.assert_close(_encode(again), _encode(encoder), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_gradient_checkpointing_changes_no_gradient(folder: Path, method: str) -> None:
    found = []
    for checkpointing in (False, True):
        encoder = _encoder(folder, method, gradient_checkpointing=checkpointing)
        _train(encoder, steps=1)
        _encode(encoder).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in _trainable(encoder).items()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_gradient_checkpointing_computes_the_blocks_again_instead_of_keeping_them(folder: Path) -> None:
    passes = {}
    for checkpointing in (False, True):
        encoder = _encoder(folder, "adapter", ("image",), gradient_checkpointing=checkpointing)
        calls: list[int] = []
        encoder.model.visual.transformer.resblocks[1].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        encoder.encode(IMAGES, None)["image"].sum().backward()
        passes[checkpointing] = len(calls)
    assert passes == {False: 1, True: 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_bf16_features_of_every_method_are_close_and_float32(folder: Path, method: str) -> None:
    exact, coarse = _encode(_encoder(folder, method)), _encode(_encoder(folder, method, precision="bf16"))
    assert coarse.dtype == torch.float32
    assert F.cosine_similarity(exact, coarse).min() > 0.99


def test_every_projection_gets_its_low_rank_update_also_the_fused_one(folder: Path) -> None:
    """Against the weights themselves, with W + (alpha / rank) B A written into torch's own attention."""
    encoder, plain = _encoder(folder, "lora"), _encoder(folder, "none")
    _train(encoder)
    state = encoder.tuned_state()
    weights = dict(plain.named_parameters())
    ends = {
        "in_proj": "in_proj_weight",
        "out_proj": "out_proj.weight",
        "c_fc": "c_fc.weight",
        "c_proj": "c_proj.weight",
    }
    updated = []
    for name, a in state.items():
        if ".lora_A." in name:
            b = state[name.replace("lora_A", "lora_B")]
            layer = name.split(".lora_A.")[0]
            stem, projection = layer.rsplit(".", 1)
            weights[f"{stem}.{ends[projection]}"].data += 6 / 2 * b @ a
            updated.append(projection)
    assert {projection: updated.count(projection) for projection in ends} == dict.fromkeys(ends, 5)
    torch.testing.assert_close(_encode(plain), _encode(encoder), rtol=1e-4, atol=1e-5)
    for zeroed in (name for name in state if "lora_B" in name):  # none of them is idle
        whole = _encode(encoder)
        kept = state[zeroed].clone()
        state[zeroed].zero_()
        assert (_encode(encoder) - whole).abs().max() > 1e-6, zeroed
        state[zeroed].copy_(kept)


def test_merged_updates_leave_a_plain_encoder_of_the_same_features(folder: Path) -> None:
    encoder = _encoder(folder, "lora")
    _train(encoder)
    expected = _encode(encoder)
    encoder.merge()
    plain = load_backbone(EncoderConfig(model=str(folder))).model.state_dict()
    assert {name: value.shape for name, value in encoder.model.state_dict().items()} == {
        name: value.shape for name, value in plain.items()
    }
    torch.testing.assert_close(_encode(encoder), expected, rtol=1e-4, atol=1e-5)


def test_one_seed_gives_one_initialisation_whatever_the_global_random_state(folder: Path) -> None:
    for method in ("prompt", "lora", "adapter"):
        first = _encoder(folder, method).tuned_state()
        torch.rand(7)
        for name, value in _encoder(folder, method).tuned_state().items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("last_n", LastNConfig(n=3), r"last_n.n: got 3, but .*the text tower has 2 layers; use at most 2$"),
        ("prompt", PromptConfig(depth=4), r"prompt.depth: got 4, but the image tower has 3 layers, .*, or 'all'$"),
        ("lora", LoraConfig(rank=25), "lora.rank: got 25, but the text tower is only 24 wide; use less"),
        ("prefix", None, "tuning.method: got 'prefix'"),
    ],
)
def test_what_a_tower_cannot_take_is_refused_and_changes_nothing(
    folder: Path, method: str, settings: MethodConfig | None, message: str
) -> None:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"))
    names = [name for name, _ in encoder.named_parameters()]
    with pytest.raises(UserError, match=message):
        encoder.tune(method, settings, torch.Generator())
    assert [name for name, _ in encoder.named_parameters()] == names
    assert not _trainable(encoder)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: PromptConfig(depth=0), "prompt.depth: got 0"),
        (lambda: LoraConfig(rank=0), "lora.rank: got 0, expected 1 or more"),
        (lambda: LoraConfig(alpha=0), "lora.alpha: got 0"),
        (lambda: AdapterConfig(bottleneck=0), "adapter.bottleneck: got 0, expected 1 or more"),
        (lambda: LastNConfig(n=0), "last_n.n: got 0, expected 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], error: str) -> None:
    with pytest.raises(UserError, match=error):
        make()


def test_tuned_weights_of_another_encoder_or_none_at_all_are_refused(folder: Path, tmp_path: Path) -> None:
    encoder = _encoder(folder, "adapter")
    other = write_tiny_clip(tmp_path / "other", width=48, head_width=16)
    save_tensors(tmp_path / "tuned.safetensors", encoder.tuned_state(), encoder.description)
    with pytest.raises(UserError, match="tuned in another encoder"):
        load_encoder(other, tmp_path / "tuned.safetensors")
    save_tensors(tmp_path / "unnamed.safetensors", encoder.tuned_state())
    with pytest.raises(UserError, match="does not hold tuned weights"):
        load_encoder(folder, tmp_path / "unnamed.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "tuned.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match="does not hold tuned weights"):
        load_encoder(folder, tmp_path / "cut.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_a_real_clip_takes_every_method(shared_data: Callable[[str], Path], method: str) -> None:
    folder = shared_data("clip-xs")
    encoder = _encoder(folder, method)
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = encoder.encode(images, encoder.tokenize(TEXTS[:2]))
    if method != "prompt":
        plain = _encoder(folder, "none").encode(images, encoder.tokenize(TEXTS[:2]))
        for modality, rows in plain.items():
            torch.testing.assert_close(features[modality], rows, rtol=1e-4, atol=1e-6)
    sum(rows.sum() for rows in features.values()).backward()
    assert all(parameter.grad is not None for parameter in _trainable(encoder).values())
