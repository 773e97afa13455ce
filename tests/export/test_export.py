"""Exported encoders, loaded by the other libraries alone, against our own features."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, method_config
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import TUNED_FILE, load_backbone, save_backbone
from ptmrec_dist.export.command import ADAPTER_CONFIG, ADAPTER_FILE, RECORD_FILE
from ptmrec_dist.export.folders import OpenClipFolder
from ptmrec_dist.export.formats import least_cosine
from tests.conftest import Project
from tests.encoders.families import write_family
from tests.encoders.tiny_sources import write_image_encoder, write_text_encoder

TEXTS = ["a red thing", "two", "the long way home over the hills"]
METHODS = {"prompt": {"length": 2}, "lora": {"rank": 2}, "adapter": {"bottleneck": 3}, "last_n": {"n": 1}, "full": {}}


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((40, 60, 3), (64, 64, 3), (20, 9, 3))
    ]


def _tuned(source: EncoderConfig, folder: Path, method: str) -> Path:
    """An encoder folder with weights of a method that move its features."""
    backbone = load_backbone(source)
    save_backbone(backbone, folder)
    encoder = Encoder(backbone, backbone.modalities)
    encoder.tune(method, method_config(method, **METHODS[method]), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    state = {
        name: value + 0.03 * torch.randn(value.shape, generator=generator)
        for name, value in encoder.tuned_state().items()
    }
    save_file(state, folder / TUNED_FILE, encoder.description)
    return folder


def _ours(folder: Path) -> dict[str, np.ndarray]:
    return _ours_of(EncoderConfig(model=str(folder)))


def _ours_of(source: EncoderConfig) -> dict[str, np.ndarray]:
    backbone = load_backbone(source)
    encoder = Encoder(backbone, backbone.modalities).eval()
    images = torch.stack([encoder.backbone.load_image(picture) for picture in _pictures()])
    with torch.no_grad():
        return {name: rows.numpy() for name, rows in encoder.encode(images, encoder.tokenize(TEXTS)).items()}


def _loaded(folder: Path) -> Encoder:
    backbone = load_backbone(EncoderConfig(model=str(folder)))
    return Encoder(backbone, backbone.modalities).eval()


def _export(run: Path, form: str, out: Path) -> int:
    return cli.run("export", ["--run", str(run), "--format", form, "--out", str(out)])


def _equal(ours: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    for modality, rows in others.items():
        assert least_cosine(ours[modality], rows) > 1 - 1e-5, modality


def _by_open_clip(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([transform(picture) for picture in _pictures()]))
        return {"image": image.numpy(), "text": model.encode_text(tokens).numpy()}


@pytest.mark.parametrize("method", ["lora", "full", "last_n"])
def test_merged_encoder_is_read_by_open_clip_as_by_us(tiny_clip: Path, tmp_path: Path, method: str) -> None:
    run = _tuned(EncoderConfig(model=str(tiny_clip)), tmp_path / "run", method)
    assert _export(run, "open_clip", tmp_path / "out") == 0
    ours = _ours(run)
    _equal(ours, _by_open_clip(tmp_path / "out"))
    assert least_cosine(ours["image"], _ours(tiny_clip)["image"]) < 1 - 1e-4
    record = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
    assert record["tuned"][0]["method"] == method
    assert min(record["least_cosine"].values()) > 1 - 1e-5


@pytest.mark.parametrize("method", ["prompt", "adapter"])
def test_what_cannot_be_merged_lies_beside_the_frozen_model(tiny_clip: Path, tmp_path: Path, method: str) -> None:
    run = _tuned(EncoderConfig(model=str(tiny_clip)), tmp_path / "run", method)
    assert _export(run, "open_clip", tmp_path / "out") == 0
    _equal(_ours(tiny_clip), _by_open_clip(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert config["peft_type"] == method.upper()
    assert METHODS[method].items() <= config.items()
    encoder = _loaded(tmp_path / "out")
    encoder.load_tuned(tmp_path / "out" / ADAPTER_FILE)
    images = torch.stack([encoder.backbone.load_image(picture) for picture in _pictures()])
    with torch.no_grad():
        rows = encoder.encode(images, encoder.tokenize(TEXTS))
    _equal(_ours(run), {name: value.numpy() for name, value in rows.items()})


def test_a_text_tower_of_transformers_loads_in_open_clip_as_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _tuned(EncoderConfig(model=str(write_family(tmp_path / "bert", "bert"))), tmp_path / "run", "lora")
    assert _export(run, "open_clip", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "pass text_cfg to it with hf_model_name set to this folder and hf_model_pretrained to False" in told
    text = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    text |= {"hf_model_name": str(tmp_path / "out"), "hf_model_pretrained": False}
    _equal(_ours(run), _by_open_clip(tmp_path / "out", text_cfg=text))


@pytest.mark.slow
def test_an_encoder_with_projections_is_exported_as_graphs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], onnxruntime: Any
) -> None:
    image, text = write_image_encoder(tmp_path / "image", "test_vit"), write_text_encoder(tmp_path / "text")
    pair = load_backbone(EncoderConfig(image=f"timm:{image}", text=f"hf:{text}"))
    save_backbone(pair.projected(8, torch.Generator().manual_seed(0)), tmp_path / "pair")
    run = _tuned(EncoderConfig(model=str(tmp_path / "pair")), tmp_path / "run", "prompt")
    for form in ("open_clip", "huggingface", "timm"):
        assert _export(run, form, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "has the image model VisionTransformer with a projection and the text model" in error
        assert error.endswith("expected onnx\n")
        assert not (tmp_path / "out").exists()
    assert _export(run, "onnx", tmp_path / "out") == 0
    ours, backbone = _ours(run), load_backbone(EncoderConfig(model=str(run)))
    images = torch.stack([backbone.load_image(picture) for picture in _pictures()])
    inputs = {"image": images.numpy(), "text": backbone.tokenize(TEXTS).numpy()}
    for modality, given in inputs.items():
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{modality}.onnx")
        (rows,) = session.run(None, {"inputs": given})
        assert rows.shape == (3, 8)
        np.testing.assert_allclose(rows, ours[modality], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), [("clip", "prompt"), ("vlmo:tiny", "adapter")])
def test_onnx_graphs_hold_every_method_and_take_any_batch(
    tiny_clip: Path, tmp_path: Path, model: str, method: str, onnxruntime: Any
) -> None:
    source = EncoderConfig(model=str(tiny_clip) if model == "clip" else model)
    run = _tuned(source, tmp_path / "run", method)
    assert _export(run, "onnx", tmp_path / "out") == 0
    ours, encoder = _ours(run), _loaded(run)
    images = torch.stack([encoder.backbone.load_image(picture) for picture in _pictures()])
    inputs = {"image": images.numpy(), "text": encoder.backbone.tokenize(TEXTS).numpy()}
    described = json.loads((tmp_path / "out" / "inputs.json").read_text())
    for modality, given in inputs.items():
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{modality}.onnx")
        assert described[modality]["shape"] == ["batch", *map(str, given.shape[1:])]
        for batch in (1, 3):
            (rows,) = session.run(None, {"inputs": given[:batch]})
            np.testing.assert_allclose(rows, ours[modality][:batch], atol=1e-5)


@pytest.mark.slow
def test_published_image_and_text_models_go_back_to_their_libraries(
    shared_data: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = EncoderConfig(image=f"timm:{shared_data('efficientnet-lite0')}", text=f"hf:{shared_data('minilm-l6')}")
    run = _tuned(source, tmp_path / "run", "last_n")
    assert _export(run, "timm", tmp_path / "timm") == 0
    assert "The text model is not part of this format" in capsys.readouterr().out
    logging.getLogger("transformers").addHandler(caplog.handler)
    assert _export(run, "huggingface", tmp_path / "hf") == 0
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records, "weights of poolers that no feature passes are reported as missing"
    ours = _ours(run)

    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        images = model(torch.stack([transform(picture) for picture in _pictures()]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    transformer = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformer(**read).last_hidden_state
    weights = read["attention_mask"][..., None].float()
    _equal(ours, {"image": images.numpy(), "text": ((states * weights).sum(dim=1) / weights.sum(dim=1)).numpy()})
    assert least_cosine(ours["text"], _ours_of(source)["text"]) < 1 - 1e-4


def test_a_run_of_stage_2_is_exported_with_its_tuned_weights(tiny_project: Project, tmp_path: Path) -> None:
    from ptmrec_dist.config import Stage2Config, TuningConfig
    from ptmrec_dist.training.stage2 import train_stage2
    from tests.conftest import UNTRACKED

    train_stage2(
        Stage2Config(
            stage1=tiny_project.stage1,
            out=tmp_path / "run",
            tuning=TuningConfig(method="lora"),
            epochs=1,
            batch_size=24,
            device="cpu",
            tracking=UNTRACKED,
        )
    )
    assert _export(tmp_path / "run", "open_clip", tmp_path / "out") == 0
    _equal(_ours(tmp_path / "run"), _by_open_clip(tmp_path / "out"))


def test_exports_that_cannot_be_are_refused_before_anything_is_written(
    tiny_clip: Path,
    tiny_project: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(run: Path, form: str, message: str, out: str = "out") -> None:
        assert _export(run, form, tmp_path / out) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    refused(tiny_clip, "huggingface", "expected open_clip or onnx")
    refused(tiny_clip, "timm", "expected open_clip or onnx")
    absent = tmp_path / "absent"
    refused(absent, "open_clip", f"run: got {absent}, expected the folder of a run, or of an encoder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(tiny_clip, "open_clip", "was not written by `ptmrec export`", out="mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "ptmrec_dist.export.onnx", raising=False)
    refused(tiny_clip, "onnx", "ptmrec-dist[export]")


def test_an_export_whose_features_differ_leaves_the_last_one_in_place(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _export(tiny_clip, "open_clip", tmp_path / "out") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write = OpenClipFolder.write

    def damaged(self: OpenClipFolder, encoder: Encoder, folder: Path) -> None:
        with torch.no_grad():
            kept = encoder.backbone.model.visual.proj.clone()  # type: ignore[union-attr, operator]
            encoder.backbone.model.visual.proj.roll(1, 1)  # type: ignore[union-attr, operator]
            encoder.backbone.model.visual.proj.copy_(F.normalize(kept, dim=0))  # type: ignore[union-attr, operator]
            write(self, encoder, folder)
            encoder.backbone.model.visual.proj.copy_(kept)  # type: ignore[union-attr, operator]

    monkeypatch.setattr(OpenClipFolder, "write", damaged)
    assert _export(tiny_clip, "open_clip", tmp_path / "out") == 3
    assert "computes other image features" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
