"""A pair of separate encoders is given a common space of images and texts."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from ptmrec_dist.config import (
    ContrastiveConfig,
    EncoderConfig,
    EncoderOptimConfig,
    LastNConfig,
    PackConfig,
    PromptConfig,
    TuningConfig,
    ZeroConfig,
)
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.common_space import SPACE_FILE
from ptmrec_dist.encoders.sources.loading import load_backbone, save_backbone
from ptmrec_dist.errors import Fault, UserError
from ptmrec_dist.evaluation.retrieval import own_pair_recall
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.encoder_folder import LINEAGE_FILE
from ptmrec_dist.training.trainer import Trainer
from tests.conftest import UNTRACKED, Project
from tests.encoders.tiny_sources import write_image_encoder, write_text_encoder
from tests.ranks import run_on_ranks
from tests.training.steps import before_each_step


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    root = tmp_path_factory.mktemp("sources")
    image, text = write_image_encoder(root / "image", "test_efficientnet"), write_text_encoder(root / "text", "bert")
    return EncoderConfig(image=f"timm:{image}", text=f"hf:{text}", prefix="film ")


def _config(
    project: Project, pair: EncoderConfig, out: Path, method: str = "none", **changes: Any
) -> ContrastiveConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "encoder": pair,
        "out": out,
        "tuning": TuningConfig(method=method, **({"settings": LastNConfig(n=1)} if method == "last_n" else {})),
        "projection": 16,
        "batch_size": 200,
        "epochs": 2,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return ContrastiveConfig(**(settings | changes))


def _state(folder: Path) -> dict[str, Tensor]:
    encoder = Encoder(load_backbone(EncoderConfig(model=str(folder))), ("image", "text"))
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def test_recall_of_own_pairs_counts_ranks_one_by_one_and_ties_against_it() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(9, 3, generator=generator), dim=1) for _ in range(2))
    texts[4] = texts[5]
    found = own_pair_recall(images, texts, cutoff=2)
    for name, a, b in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        hits = 0
        for row in range(9):
            others = [float(a[row] @ b[other]) for other in range(9) if other != row]
            hits += sum(other >= float(a[row] @ b[row]) for other in others) < 2
        assert found[name] == pytest.approx(hits / 9)
    assert own_pair_recall(torch.ones(3, 2), torch.ones(3, 2), cutoff=2) == {"image_to_text": 0, "text_to_image": 0}


@pytest.mark.slow
def test_projections_are_learned_alone_on_frozen_towers(
    tiny_project: Project, pair: EncoderConfig, tmp_path: Path
) -> None:
    out = tmp_path / "encoder"
    fine_tune(_config(tiny_project, pair, out, epochs=30, projection_lr=0.02))
    source, after = load_backbone(pair), _state(out)
    lineage = json.loads((out / LINEAGE_FILE).read_text())
    assert lineage["encoder"] == source.fingerprint
    assert lineage["parameters"] == {
        "encoder": 16 * sum(source.tower(name).out_width for name in source.modalities) + 1
    }
    assert lineage["loss"][-1] < lineage["loss"][0] - 0.5
    for name, weight in source.model.state_dict().items():
        assert torch.equal(after[f"model.{name}"], weight), name
    assert load_backbone(EncoderConfig(model=str(out))).tokenize(["x"]).equal(source.tokenize(["x"]))  # with its prefix


@pytest.mark.slow
def test_ranks_learn_as_one_process_does_and_an_interrupted_run_resumes_to_the_digit(
    tiny_project: Project, pair: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"optim": EncoderOptimConfig(encoder_lr=1e-4), "epochs": 3}
    run_on_ranks(2, fine_tune, _config(tiny_project, pair, tmp_path / "two", "last_n", **settings))
    config = _config(tiny_project, pair, tmp_path / "one", "last_n", **settings)
    monkeypatch.setattr(Trainer, "train_step", Trainer.train_step)  # put back afterwards

    def interrupt(trainer: Trainer, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    fine_tune(config)
    whole = _state(tmp_path / "one")
    before_each_step(interrupt)
    again = _config(tiny_project, pair, tmp_path / "again", "last_n", **settings)
    fine_tune(again)
    assert not (tmp_path / "again" / "encoder.json").exists()
    (tmp_path / "again" / "image").mkdir()  # of a run that was killed while it wrote the encoder
    (tmp_path / "again" / "image" / "config.json").touch()
    fine_tune(again)
    resumed, ranks = _state(tmp_path / "again"), _state(tmp_path / "two")
    start = _start(pair)
    names = {name for name, value in whole.items() if not torch.equal(value, start[name])}
    assert any("model.image" in name for name in names)
    assert any("model.text" in name for name in names)
    assert {name for name in names if "space" in name} == {name for name in whole if "space" in name}
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name
        if name.endswith("key.bias"):  # softmax does not depend on it: its gradient is rounding, which Adam enlarges
            continue
        moved, apart = (whole[name] - start[name]).abs().max(), (ranks[name] - whole[name]).abs().max()
        assert apart <= 1e-3 * moved, (name, moved, apart)
    lineages = [json.loads((tmp_path / name / LINEAGE_FILE).read_text()) for name in ("one", "again", "two")]
    assert lineages[0]["loss"] == lineages[1]["loss"]
    assert lineages[0]["retrieval"] == lineages[1]["retrieval"] == lineages[2]["retrieval"]
    assert lineages[0]["retrieval"]["after"]["items"] > 1


def _start(pair: EncoderConfig) -> dict[str, Tensor]:
    backbone = load_backbone(pair).projected(16, torch.Generator().manual_seed(0))
    return Encoder(backbone, ("image", "text")).state_dict()


def _fine_tune_all(configs: list[ContrastiveConfig]) -> None:
    for config in configs:
        fine_tune(config)


@torch.no_grad()
def _features(encoder: EncoderConfig, projected: bool = False) -> Tensor:
    backbone = load_backbone(encoder)
    if projected:
        backbone = backbone.projected(16, torch.Generator().manual_seed(0))
    read = Encoder(backbone, ("image", "text")).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, *read.towers["image"].example.shape[1:]), dtype=torch.uint8, generator=noise)
    return torch.stack(list(read.encode(images, read.tokenize(["a red thing", "film", "a blue cup"])).values()))


@pytest.mark.slow
def test_every_method_tunes_a_pair_on_ranks_as_in_one_process_also_in_parts_and_in_low_precision(
    tiny_project: Project, tmp_path: Path
) -> None:
    image, text = write_image_encoder(tmp_path / "vit", "test_vit"), write_text_encoder(tmp_path / "bert")
    pair = EncoderConfig(image=f"timm:{image}", text=f"hf:{text}")

    def config(name: str, method: str, **changes: Any) -> ContrastiveConfig:
        optim = EncoderOptimConfig(encoder_lr=1e-4 if method == "full" else 1e-3)
        return _config(tiny_project, pair, tmp_path / name, method, **({"optim": optim, "epochs": 2} | changes))

    methods = ("lora", "adapter", "full")
    _fine_tune_all([config(f"{method}1", method) for method in methods])
    divided = config("full3", "full", zero=ZeroConfig(stage=3))
    coarse = config("bf16-lora", "lora", precision="bf16")
    run_on_ranks(2, _fine_tune_all, [*(config(f"{method}2", method) for method in methods), divided, coarse])
    start = _features(pair, projected=True)
    found = {
        out.name: _features(EncoderConfig(model=str(out)))
        for out in tmp_path.iterdir()
        if (out / LINEAGE_FILE).exists()
    }
    for method in methods:
        whole = found[f"{method}1"]
        moved = (whole - start).abs().max()
        assert moved > 1e-2, method
        for name in found.keys() & {f"{method}2", f"{method}3"}:
            assert (found[name] - whole).abs().max() < 1e-3 * moved, name
        if f"bf16-{method}" in found:
            assert 0 < (found[f"bf16-{method}"] - whole).abs().max() < 0.3 * moved
    assert len(found) == 3 + 3 + 1 + 1


def test_fewer_than_two_pairs_are_refused_and_damaged_ones_are_left_out_as_far_as_is_allowed(
    tiny_project: Project, pair: EncoderConfig, tmp_path: Path
) -> None:
    for held_in, message in ((0, "has 0 items with an image and a text"), (1, "has 1 items with an image and a text")):
        shards = tmp_path / f"shards{held_in}"
        _packed(tiny_project, shards, with_image=held_in)
        with pytest.raises(UserError, match=rf"{message} that are not held out, expected 2 or more"):
            fine_tune(replace(_config(tiny_project, pair, tmp_path / "out"), shards=shards))
    assert not (tmp_path / "out").exists()
    shutil.copytree(tiny_project.shards, tmp_path / "damaged")
    (tmp_path / "damaged" / "shard-000002.tar").write_bytes(b"")
    strict = replace(_config(tiny_project, pair, tmp_path / "out", epochs=1), shards=tmp_path / "damaged")
    with pytest.raises(Fault, match=r"cannot be read .*more than --max_damaged 0 allows"):
        fine_tune(strict)
    assert not (tmp_path / "out" / "encoder.json").exists()
    fine_tune(replace(strict, out=tmp_path / "lenient", max_damaged=0.5))
    assert load_backbone(EncoderConfig(model=str(tmp_path / "lenient"))).projections


def _packed(project: Project, out: Path, with_image: int) -> None:
    """The project's items, of which so many have an image and a text, and the others alternate between the two."""
    items = pl.read_csv(project.source / "items.csv").with_row_index("row").with_columns(
        pl.when((pl.col("row") < with_image) | (pl.col("row") % 2 == 1)).then(pl.col("image")).alias("image"),
        pl.when((pl.col("row") < with_image) | (pl.col("row") % 2 == 0)).then(pl.col("text")).alias("text"),
    )  # fmt: skip
    folder = out.with_name(f"{out.name}-source")
    folder.mkdir()
    items.drop("row", "title").write_csv(folder / "items.csv")
    pack(
        PackConfig(
            items=folder / "items.csv",
            images=project.source,
            interactions=project.source / "interactions.csv",
            out=out,
            core=1,
            num_shards=2,
            workers=1,
            missing="keep",
        )
    )


def test_prompts_of_one_tower_are_saved_beside_the_projections(
    tiny_project: Project, pair: EncoderConfig, tmp_path: Path
) -> None:
    out, copy = tmp_path / "prompted", tmp_path / "copy"
    tuning = TuningConfig(method="prompt", settings=PromptConfig(length=2, towers="text"))
    fine_tune(_config(tiny_project, pair, out, tuning=tuning, epochs=1))
    backbone = load_backbone(EncoderConfig(model=str(out)))
    assert [path.name for path in backbone.tuned] == ["tuned.safetensors"]
    save_backbone(backbone, copy)
    again = load_backbone(EncoderConfig(model=str(copy)))
    assert again.fingerprint == backbone.fingerprint
    ids = backbone.tokenize(["a red cup", "film about dog"])
    both, alone = (
        Encoder(load_backbone(EncoderConfig(model=str(folder))), towers)
        for folder, towers in ((out, ("image", "text")), (copy, ("text",)))
    )
    images = both.towers["image"].example.repeat(2, 1, 1, 1)
    torch.testing.assert_close(alone.encode(None, ids)["text"], both.encode(images, ids)["text"])
    assert not torch.equal(_state(out)["model.space.logit_scale"], _start(pair)["model.space.logit_scale"])


def test_what_has_no_pairs_to_compare_is_refused_before_anything_is_written(
    tiny_project: Project, pair: EncoderConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    clip = EncoderConfig(model=str(tiny_project.clip))
    refused = {
        r"projection: got 16, but this encoder has a common space already": (clip, {"tuning": TuningConfig()}),
        r"tuning\.method: got 'none', expected a method that trains something": (clip, {"projection": None}),
        r"encoder: got an encoder of images alone": (EncoderConfig(image=pair.image), {}),
        r"encoder: got an encoder of texts alone": (EncoderConfig(text=pair.text), {}),
        r"objectives: got itm": (pair, {"objectives": ("itc", "itm")}),
    }
    for message, (encoder, changes) in refused.items():
        with pytest.raises(UserError, match=message):
            fine_tune(_config(tiny_project, encoder, out, **changes))
    with pytest.raises(UserError, match="projection: got 0, expected 1 or more"):
        _config(tiny_project, pair, out, projection=0)
    assert not out.exists()
    spaced = load_backbone(pair).projected(8, torch.Generator().manual_seed(0))
    save_backbone(spaced, tmp_path / "spaced")
    saved = EncoderConfig(model=str(tmp_path / "spaced"))
    assert load_backbone(saved).fingerprint == spaced.fingerprint
    with pytest.raises(UserError, match="has a common space already"):
        fine_tune(_config(tiny_project, saved, out))
    for damage in (lambda path: path.write_bytes(b"{}"), Path.unlink):
        damage(tmp_path / "spaced" / SPACE_FILE)
        with pytest.raises(UserError, match="cannot read the projections"):
            load_backbone(saved)
