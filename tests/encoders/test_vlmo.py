"""VLMo and BEiT-3 against loops over the published weights, and what tuning methods do where modalities share attention."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, method_config
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.encoders.sources.vlmo.source import load_unified
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
        hidden = F.gelu(
            _linear(weights, f"{block}.mlp_{expert}.fc1", _norm(weights, f"{block}.norm2_{expert}", row, 1e-6))
        )
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
    parts = [
        *([] if ids is None else [_vlmo_text(weights, ids)]),
        *([] if image is None else [_vlmo_image(weights, image)]),
    ]
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
        hidden = F.gelu(
            _linear(weights, f"{layer}.ffn.{way}.fc1", _norm(weights, f"{layer}.final_layer_norm.{way}", x, 1e-5))
        )
        x = x + _linear(
            weights, f"{layer}.ffn.{way}.fc2", _norm(weights, f"{layer}.ffn.{way}.ffn_layernorm", hidden, 1e-5)
        )
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


def test_saved_model_is_found_by_its_folder_and_has_the_same_fingerprint(
    vlmo: Path, beit3: Path, tmp_path: Path
) -> None:
    for name, path in (("vlmo", vlmo), ("beit3", beit3)):
        loaded = load_unified(str(path))
        save_backbone(loaded, tmp_path / name)
        again = load_backbone(EncoderConfig(model=str(tmp_path / name)))
        assert again.fingerprint == loaded.fingerprint
        assert load_backbone(EncoderConfig(model=f"vlmo:{path}")).fingerprint == loaded.fingerprint
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }


def test_the_small_model_is_the_same_each_time_and_reads_any_text() -> None:
    first, second = (load_backbone(EncoderConfig(model="vlmo:tiny")) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.tokenize(["Ünknown ☃ word", ""]).shape == (2, 64)
    assert first.tokenized(["short", "x" * 100])[1] == 1


def test_trimming_padding_changes_no_feature(vlmo: Path, beit3: Path) -> None:
    for path in (vlmo, beit3):
        tower = load_unified(str(path)).tower("text")
        ids = load_unified(str(path)).tokenize(TEXTS)[:1]
        short = tower.trimmed(ids)
        assert short.shape[1] < ids.shape[1]
        torch.testing.assert_close(tower.encode(short), tower.encode(ids), rtol=1e-5, atol=1e-5)


def test_features_of_the_contrastive_heads_on_request(vlmo: Path, tmp_path: Path) -> None:
    shutil.copytree(vlmo.parent, tmp_path / "itc")
    config = json.loads((tmp_path / "itc" / "config.json").read_text())
    (tmp_path / "itc" / "config.json").write_text(json.dumps(config | {"features": "itc"}))
    plain, projected = load_unified(str(vlmo)), load_unified(str(tmp_path / "itc" / vlmo.name))
    assert plain.fingerprint != projected.fingerprint
    weight = published_vlmo()["itc_text_proj.fc.weight"]
    ids = plain.tokenize(TEXTS)
    expected = plain.tower("text").encode(ids) @ weight.T
    torch.testing.assert_close(projected.tower("text").encode(ids), expected, rtol=1e-4, atol=1e-4)


def _without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in published_vlmo().items() if key != name}


BAD = {
    "a missing weight of the trunk": (
        _without("transformer.blocks.1.norm2_text.bias"),
        {},
        "norm2.text.bias is missing",
    ),
    "relative positions": (
        published_vlmo() | {"transformer.blocks.0.gamma_1": torch.ones(WIDTH)},
        {},
        "gamma_1 is unknown",
    ),
    "other sizes": (published_vlmo(), {"hidden": 40}, r"\(48, 24\) instead of \(40, 24\)"),
    "another model": (published_vlmo(), {"model_type": "bert"}, "expected vlmo or beit3"),
    "an unknown size": (published_vlmo(), {"depth": 3}, "depth"),
    "heads that do not divide": (published_vlmo(), {"heads": 7}, "heads that divide"),
    "features of no kind": (published_vlmo(), {"features": "mean"}, "expected class_token or itc"),
    "a small vocabulary": (published_vlmo(), {"vocabulary": 9}, r"\(30, 24\) instead of \(9, 24\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_fit_are_refused_by_one_line(case: str, tmp_path: Path) -> None:
    weights, changes, message = BAD[case]
    config = SIZES | {"model_type": "vlmo", "joint_layers": JOINT} | changes
    path = write_published(tmp_path / "files", weights, config)
    with pytest.raises(UserError, match=message) as refused:
        load_unified(str(path))
    assert "\n" not in str(refused.value)


class _Payload:
    """Runs code where a pickle is read without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("was_run"),)  # type: ignore[return-value]


def test_files_with_anything_but_tensors_are_refused_and_nothing_is_run(
    vlmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vlmo.parent, tmp_path / "files")
    path = tmp_path / "files" / vlmo.name
    for content, message in ((_Payload(), "more than tensors"), ({"model": [1, 2]}, "no state dictionary")):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            load_unified(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"cannot read|more than tensors"):
        load_unified(str(path))
    assert not (tmp_path / "was_run").exists()
    (path.parent / "vocab.txt").unlink()
    torch.save(published_vlmo(), path)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_unified(str(path))
    with pytest.raises(UserError, match="does not exist"):
        load_unified(str(tmp_path / "absent"))


def test_missing_heads_are_warned_of_and_the_same_in_every_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = {name: value for name, value in published_vlmo().items() if not name.startswith(("itm_score", "mlm_score"))}
    path = write_published(tmp_path / "files", trunk, SIZES | {"model_type": "vlmo", "joint_layers": JOINT})
    first, second = load_unified(str(path)), load_unified(str(path))
    assert "heads.matching.weight" in caplog.text
    assert first.fingerprint == second.fingerprint


def _encoder(path: Path, method: str, **settings: object) -> Encoder:
    encoder = Encoder(load_unified(str(path)), ("image", "text"))
    encoder.tune(method, method_config(method, **settings), torch.Generator().manual_seed(0))
    return encoder


def _features(encoder: Encoder) -> dict[str, Tensor]:
    return encoder.encode(_pixels(), encoder.tokenize(TEXTS))


METHODS = {"prompt": {"length": 2}, "lora": {"rank": 2}, "adapter": {"bottleneck": 3}, "last_n": {"n": 1}, "full": {}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vlmo", "beit3"])
def test_every_method_tunes_both_ways_and_nothing_else(
    family: str, method: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(family)
    before = _features(_encoder(path, "none"))
    encoder = _encoder(path, method, **METHODS[method])
    if method != "prompt":
        for modality, rows in _features(encoder).items():
            torch.testing.assert_close(rows, before[modality], rtol=0, atol=1e-6)
    tuned = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    frozen = {name: value.clone() for name, value in encoder.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW(tuned, lr=0.02)
    for _ in range(2):  # the first step moves low-rank updates off zero
        optimizer.zero_grad()
        rows = _features(encoder)
        (
            (rows["image"] * torch.linspace(-1, 1, WIDTH)).sum() + (rows["text"] * torch.linspace(1, -1, WIDTH)).sum()
        ).backward()
        optimizer.step()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and not name.endswith("key.bias"):  # which no softmax depends on
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert all(torch.equal(value, dict(encoder.named_parameters())[name]) for name, value in frozen.items())
    after = _features(encoder)
    assert all((after[modality] - before[modality]).abs().max() > 1e-3 for modality in after)
    save_file(encoder.tuned_state(), tmp_path / "tuned.safetensors", encoder.description)
    again = Encoder(load_unified(str(path)), ("image", "text"))
    again.load_tuned(tmp_path / "tuned.safetensors")
    assert all(torch.equal(rows, after[modality]) for modality, rows in _features(again).items())
    again.merge()
    for modality, rows in _features(again).items():
        torch.testing.assert_close(rows, after[modality], rtol=1e-5, atol=1e-5)


def test_shared_attention_is_wrapped_once(vlmo: Path, beit3: Path) -> None:
    """A block of VLMo has 4 projections of attention and 2 of each expert; in BEiT-3 each modality has all 6."""
    for path, per_block in ((vlmo, 4 + 2 + 2), (beit3, 2 * 6)):
        updates = [name for name in _encoder(path, "lora").tuned_state() if "lora_B" in name]
        assert len(updates) == LAYERS * per_block
        ends = [name for name in _encoder(path, "adapter").tuned_state() if name.endswith("up.weight")]
        assert len(ends) == LAYERS * (3 if path == vlmo else 4)


def test_tuning_the_text_tower_alone_reaches_images_only_through_shared_attention(vlmo: Path, beit3: Path) -> None:
    for path, moves in ((vlmo, True), (beit3, False)):
        encoder = _encoder(path, "lora", towers="text")
        before = _features(encoder)["image"]
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
        assert bool((_features(encoder)["image"] - before).abs().max() > 1e-4) is moves
        encoder.drop_frozen_towers()
        assert set(encoder.towers) == ({"image", "text"} if moves else {"text"})


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_pairs_pass_the_same_tuned_modules(vlmo: Path, method: str) -> None:
    encoder = _encoder(vlmo, method)
    pixels, ids = _pixels().float() / 127.5 - 1, encoder.tokenize(TEXTS)
    before = encoder.backbone.model.encode_pair(pixels, ids)  # type: ignore[operator]
    tuned = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
    for name, value in tuned.items():
        if "attn" not in name:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(0))
    moved = (encoder.backbone.model.encode_pair(pixels, ids) - before).detach().abs()  # type: ignore[operator]
    assert moved[:, : ids.shape[1]].max() > 1e-3
    assert moved[:, ids.shape[1] :].max() > 1e-3
