"""The contrastive objective against loops and over ranks, and the tiny CLIP that is trained with it."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist.config import (
    ContrastiveConfig,
    EncoderConfig,
    EncoderOptimConfig,
    FeaturesConfig,
    LastNConfig,
    PromptConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
    ZeroConfig,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.data.synthetic.catalogue import generate_pairs
from ptmrec_dist.distributed import World, gather_rows, join_world, mean_over_ranks, sum_over_ranks
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.encoders.sources.loading import load_backbone, load_backbone_of, save_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import INPUTS_FILE
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.encoder_folder import LINEAGE_FILE
from ptmrec_dist.training.objectives.contrastive import contrastive_loss
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from ptmrec_dist.training.tiny_clip import IMAGE_SIZE, train_clip
from ptmrec_dist.training.trainer import Trainer
from tests.conftest import UNTRACKED, Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks
from tests.training.steps import before_each_step

COUNTS = (4, 2)
METHODS = ("prompt", "lora", "adapter", "last_n", "full")


def _random_features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(6, 5, generator=generator), dim=1) for _ in range(2))  # type: ignore[return-value]


def test_loss_equals_eq_2_in_both_directions_written_out() -> None:
    images, texts = _random_features()
    found = contrastive_loss(images, texts, images, texts, torch.arange(6), 7.0)
    for row in range(6):
        to_texts = [math.exp(7 * float(images[row] @ text)) for text in texts]
        to_images = [math.exp(7 * float(texts[row] @ image)) for image in images]
        expected = -(math.log(to_texts[row] / sum(to_texts)) + math.log(to_images[row] / sum(to_images))) / 2
        assert found[row].item() == pytest.approx(expected, rel=1e-5)


def _gradient_on_ranks() -> tuple[float, Tensor]:
    world = join_world("cpu")
    images, texts = _random_features()
    weight = torch.eye(5, requires_grad=True)
    own = slice(*((0, 4) if world.is_first else (4, 6)))
    images_BD, texts_BD = images[own] @ weight, texts[own] @ weight
    rows = torch.arange(6)[own]
    loss = mean_over_ranks(
        contrastive_loss(images_BD, texts_BD, gather_rows(images_BD), gather_rows(texts_BD), rows, 7.0)
    )
    loss.backward()
    assert weight.grad is not None
    return sum_over_ranks(loss).item() / 2, sum_over_ranks(weight.grad) / 2


def test_gradient_on_ranks_equals_one_process() -> None:
    images, texts = _random_features()
    weight = torch.eye(5, requires_grad=True)
    moved = images @ weight, texts @ weight
    expected = contrastive_loss(*moved, *moved, torch.arange(6), 7.0).mean()
    expected.backward()
    assert weight.grad is not None
    for loss, gradient in run_on_ranks(2, _gradient_on_ranks):
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_trained_clip_loads_as_an_encoder_and_one_seed_gives_one(tmp_path: Path) -> None:
    pictures, captions = generate_pairs(16, size=IMAGE_SIZE, seed=0)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_clip(tmp_path / name, pictures, captions, seed=seed, steps=2)
    a, b, c = (load_backbone(EncoderConfig(model=str(tmp_path / name))) for name in "abc")
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != c.fingerprint
    encoder = Encoder(a, ("image", "text"))
    features = encoder.encode(torch.from_numpy(pictures[:2]), encoder.tokenize(captions[:2]))
    assert features["image"].shape == features["text"].shape


def _config(project: Project, out: Path, method: str = "full", **changes: Any) -> ContrastiveConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "encoder": EncoderConfig(model=str(project.clip)),
        "out": out,
        "tuning": TuningConfig(method=method, **({"settings": LastNConfig(n=1)} if method == "last_n" else {})),
        "optim": EncoderOptimConfig(encoder_lr=1e-3),
        "batch_size": 24,
        "epochs": 2,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return ContrastiveConfig(**(settings | changes))


def _features(project: Project, encoder: Path, out: Path) -> dict[str, np.ndarray]:
    extract_features(
        FeaturesConfig(shards=project.shards, encoder=EncoderConfig(model=str(encoder)), out=out, device="cpu")
    )
    return {modality: np.load(out / f"{modality}.npy") for modality in ("image", "text")}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_fine_tuned_encoder_serves_every_later_step(tiny_project: Project, tmp_path: Path, method: str) -> None:
    """Features, stage 1, stage 2 with low-rank updates on top, a registered model's encoder."""
    clip, features = tmp_path / "clip", tmp_path / "features"
    run_on_ranks(1, fine_tune, _config(tiny_project, clip, method))
    plain = {"open_clip_config.json", "open_clip_model.safetensors", "lineage.json", "history.jsonl"}
    plain |= {"config.yaml", "inputs.json", "tracking.json", "efficiency.json"}
    assert {path.name for path in clip.iterdir()} == plain | (
        {"tuned.safetensors"} if method in ("prompt", "adapter") else set()
    )
    tables = _features(tiny_project, clip, features)
    for modality, table in tables.items():
        before = np.load(tiny_project.features / f"{modality}.npy")
        assert np.abs(table - before).max() > 0.003
    first = Stage1Config(
        shards=tiny_project.shards, features=features, out=tmp_path / "a", epochs=1, batch_size=64, tracking=UNTRACKED
    )
    train_stage1(first)
    second = Stage2Config(
        stage1=tmp_path / "a",
        out=tmp_path / "b",
        tuning=TuningConfig(method="lora"),
        epochs=1,
        batch_size=24,
        device="cpu",
        tracking=UNTRACKED,
    )
    run_on_ranks(1, train_stage2, second)
    save_backbone(
        load_backbone_of(json.loads((tmp_path / "b" / "run.json").read_text())["encoder"]), tmp_path / "served"
    )
    encoder = load_encoder(tmp_path / "served", tmp_path / "b" / "encoder.safetensors")
    batch = ItemFiles(Dataset(tiny_project.shards), reader_of(encoder)).read(np.arange(9))
    for modality, rows in encoder.encode(batch.images, batch.texts).items():
        table = np.load(tmp_path / "b" / "features" / f"{modality}.npy")
        np.testing.assert_allclose(rows.numpy(), table[:9], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_ranks_fine_tune_as_one_process_does(tiny_project: Project, tmp_path: Path, zero: int) -> None:
    """All pairs in every step, however they lie: negatives come from all ranks."""
    settings: dict[str, Any] = {"batch_size": 200, "zero": ZeroConfig(stage=zero), "epochs": 3}  # type: ignore[arg-type]
    settings["optim"] = EncoderOptimConfig(encoder_lr=1e-4)
    found = []
    for ranks in (1, 2):
        run_on_ranks(ranks, fine_tune, _config(tiny_project, tmp_path / str(ranks), **settings))
        found.append(_features(tiny_project, tmp_path / str(ranks), tmp_path / f"features{ranks}"))
    for modality, table in found[0].items():
        before = np.load(tiny_project.features / f"{modality}.npy")
        moved, apart = np.abs(table - before).max(), np.abs(found[1][modality] - table).max()
        assert apart < 1e-4 * moved, (modality, moved, apart)


@pytest.mark.slow
def test_images_find_their_texts_better_after_it(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(tiny_project, tmp_path / "clip", epochs=12, batch_size=200)
    run_on_ranks(1, fine_tune, config)
    losses = json.loads((tmp_path / "clip" / LINEAGE_FILE).read_text())["loss"]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3


def test_cold_items_take_no_part(tiny_project: Project, tmp_path: Path) -> None:
    from ptmrec_dist.training.contrastive import _batches
    from ptmrec_dist.training.encoder_folder import untuned_encoder

    config, dataset = _config(tiny_project, tmp_path / "clip"), Dataset(tiny_project.shards)
    encoder = untuned_encoder(config, load_backbone(config.encoder))
    batches = _batches(config, dataset, encoder, World(0, 1, torch.device("cpu")))
    seen = torch.cat([batch.items for batch in batches.stream.epoch(0)]).tolist()
    cold = set(dataset.cold_items("cold_validation")) | set(dataset.cold_items("cold_test"))
    assert cold
    assert sorted(seen) == sorted(set(range(dataset.num_items)) - cold)


def test_what_cannot_be_fine_tuned_is_refused_before_anything_is_written(tiny_project: Project, tmp_path: Path) -> None:
    tuning = TuningConfig(method="last_n", settings=LastNConfig(n=9))
    with pytest.raises(UserError, match=r"last_n\.n: got 9"):
        fine_tune(_config(tiny_project, tmp_path / "clip", tuning=tuning))
    with pytest.raises(UserError, match=r"tuning\.method: got 'none', expected a method that trains something"):
        fine_tune(_config(tiny_project, tmp_path / "clip", "none"))
    assert not (tmp_path / "clip").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another --out"):
        fine_tune(_config(tiny_project, tmp_path / "mine"))
    run_on_ranks(1, fine_tune, _config(tiny_project, tmp_path / "prompted", "prompt"))
    again = _config(tiny_project, tmp_path / "twice", encoder=EncoderConfig(model=str(tmp_path / "prompted")))
    with pytest.raises(UserError, match=r"carries what was tuned before \(tuned\.safetensors\)"):
        fine_tune(again)
    prompted = Encoder(load_backbone(again.encoder), ("image", "text"))
    with pytest.raises(UserError, match="already has prompts"):
        prompted.tune("prompt", PromptConfig(), torch.Generator())


def _arguments(project: Project, out: Path, *more: str) -> list[str]:
    return [
        *("--shards", str(project.shards), "--encoder.model", str(project.clip), "--out", str(out), "--epochs", "3"),
        *("--batch_size", "12", "--optim.encoder_lr", "1e-3", "--tuning.method", "lora", "--checkpoint_every", "2"),
        *("--timeout", "30", "--device", "cpu", "--tracking.enabled", "false", *more),
    ]


def _befallen(arguments: list[str], logs: Path, rank: str, number: int) -> None:
    """The command on a rank; one rank gets a signal before its sixth step, in the midst of the second epoch."""

    def kill(trainer: Trainer, step: int) -> None:
        if os.environ["RANK"] == rank and step == 5:
            os.kill(os.getpid(), number)

    before_each_step(kill)
    command_on_rank("contrastive", arguments, logs)


@pytest.fixture(scope="module")
def undisturbed(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = _arguments(tiny_project, folder / "clip")
    assert exit_codes_on_ranks(2, command_on_rank, "contrastive", arguments, folder) == [0, 0]
    return folder / "clip"


def _same(one: Path, other: Path) -> None:
    assert (one / "open_clip_model.safetensors").read_bytes() == (other / "open_clip_model.safetensors").read_bytes()
    losses = [json.loads((folder / LINEAGE_FILE).read_text())["loss"] for folder in (one, other)]
    assert losses[0] == losses[1]
    assert not (one / "checkpoints").exists()


@pytest.mark.slow
def test_a_lost_rank_is_named_and_the_same_command_ends_as_if_nothing_had_been(
    tiny_project: Project, tmp_path: Path, undisturbed: Path
) -> None:
    arguments = _arguments(tiny_project, tmp_path / "clip")
    assert exit_codes_on_ranks(2, _befallen, arguments, tmp_path, "1", signal.SIGKILL) == [3, -9]
    log = (tmp_path / "rank0").read_text()
    assert "rank 0 lost contact with the other ranks at step 6: rank 1 sends no heartbeat (last one at step" in log
    assert "Traceback" not in log
    assert not (tmp_path / "clip" / "open_clip_config.json").exists()
    assert exit_codes_on_ranks(2, command_on_rank, "contrastive", arguments, tmp_path) == [0, 0]
    _same(tmp_path / "clip", undisturbed)


@pytest.mark.slow
def test_a_signal_lets_the_step_end_and_the_same_command_goes_on(
    tiny_project: Project, tmp_path: Path, undisturbed: Path
) -> None:
    arguments = _arguments(tiny_project, tmp_path / "clip", "--keep_checkpoints", "1")
    assert exit_codes_on_ranks(2, _befallen, arguments, tmp_path, "0", signal.SIGTERM) == [0, 0]
    assert [path.name for path in (tmp_path / "clip" / "checkpoints").iterdir()] == ["step-000000006"]
    with pytest.raises(UserError, match=r"holds a run of other settings \(batch_size 12 -> 20"):
        fine_tune(
            _config(
                tiny_project,
                tmp_path / "clip",
                epochs=3,
                batch_size=20,
                tuning=TuningConfig(method="lora"),
                optim=EncoderOptimConfig(encoder_lr=1e-3),
            )
        )
    inputs = json.loads((tmp_path / "clip" / INPUTS_FILE).read_text())
    (tmp_path / "clip" / INPUTS_FILE).write_text(json.dumps(inputs | {"encoder": "0" * 64}))
    assert exit_codes_on_ranks(1, command_on_rank, "contrastive", arguments, tmp_path) == [2]
    assert "was started with 000000000000; give that or choose another --out" in (tmp_path / "rank0").read_text()
    (tmp_path / "clip" / INPUTS_FILE).write_text(json.dumps(inputs))
    assert exit_codes_on_ranks(2, command_on_rank, "contrastive", arguments, tmp_path) == [0, 0]
    _same(tmp_path / "clip", undisturbed)
