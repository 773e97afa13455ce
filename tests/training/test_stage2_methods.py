"""Every method of tuning under a real DeepSpeed engine: each ZeRO stage, on two ranks, and what stays untouched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import (
    AdapterConfig,
    FullConfig,
    LastNConfig,
    LoraConfig,
    MethodConfig,
    OptimConfig,
    PromptConfig,
    Stage2Config,
    TuningConfig,
    ZeroConfig,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.random_access import ItemFiles
from ptmrec_dist.encoders.encoder import load_encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage2 import train_stage2
from ptmrec_dist.training.tune import check_start
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.slow

METHODS: dict[str, MethodConfig] = {
    "prompt": PromptConfig(),
    "lora": LoraConfig(rank=2),
    "adapter": AdapterConfig(bottleneck=4),
    "last_n": LastNConfig(n=1),
    "full": FullConfig(),
}


def _config(project: Project, out: Path, method: str, zero: int = 1, **changes: Any) -> Stage2Config:
    checkpointing = changes.pop("gradient_checkpointing", False)
    own = changes.pop("settings", METHODS[method])
    settings: dict[str, Any] = {
        "stage1": project.stage1,
        "out": out,
        "epochs": 1,
        "patience": 9,
        "batch_size": 12,
        "device": "cpu",
        "tracking": UNTRACKED,
        "zero": ZeroConfig(stage=zero),  # type: ignore[arg-type]
        "tuning": TuningConfig(method=method, gradient_checkpointing=checkpointing, settings=own),
        "optim": OptimConfig(encoder_lr=1e-3),
    }
    return Stage2Config(**(settings | changes))


def _trained(config: Stage2Config) -> dict[str, Any]:
    """Train; how far each of the encoder's weights moved by the last step, and which of them may."""

    from ptmrec_dist.training.trainer import Trainer

    found: dict[str, Any] = {}
    whole_fit = Trainer.fit

    def fit_and_look(trainer: Any) -> bool:
        finished = whole_fit(trainer)
        fresh = check_start(config, load_run(config.stage1))
        assert fresh is not None
        before = {name: value.detach().clone() for name, value in fresh.named_parameters()}
        with trainer.engine.whole():
            after = dict(trainer.objective.encoder.named_parameters())
            assert after.keys() == before.keys()
            found["moved"] = {n: v.detach() - before[n] for n, v in after.items() if not torch.equal(v, before[n])}
            found["may"] = [name for name, value in after.items() if value.requires_grad]
        return finished

    Trainer.fit = fit_and_look  # type: ignore[method-assign]
    train_stage2(config)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_zero_stages_move_what_is_tuned_alike_and_no_bit_of_the_rest(
    tiny_project: Project, tmp_path: Path, method: str
) -> None:
    """On one order of items; only the order of additions differs. ZeRO-3 computes blocks anew in the backward pass."""
    expected: dict[str, np.ndarray] = {}
    for zero in (1, 2, 3):
        config = _config(tiny_project, tmp_path / f"zero{zero}", method, zero, gradient_checkpointing=zero == 3)
        found = run_on_ranks(2, _trained, config)[0]
        assert list(found["moved"]) == found["may"]
        assert len(found["may"]) > 0
        assert set(load_file(tmp_path / f"zero{zero}" / "encoder.safetensors")) == set(found["may"])
        expected = expected or found["moved"]
        for name, moved in found["moved"].items():
            # Adam makes a whole step of 1e-3 of a gradient that is nearly zero, whatever its sign.
            odd = np.abs(moved - expected[name]) > 1e-4
            if name.endswith("in_proj_bias"):  # a softmax does not see the bias of its keys: no gradient but rounding
                odd = np.delete(odd, np.s_[len(odd) // 3 : 2 * len(odd) // 3])
            assert odd.mean() < 0.01, (name, zero)


@pytest.mark.parametrize("method", METHODS)
def test_the_features_of_a_run_are_those_of_its_tuned_encoder(
    tiny_project: Project, tmp_path: Path, method: str
) -> None:
    run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / "run", method, select_on="validation"))
    encoder = load_encoder(tiny_project.clip, tmp_path / "run" / "encoder.safetensors")
    dataset = Dataset(tiny_project.shards)
    batch = ItemFiles(dataset, reader_of(encoder)).read(np.arange(9))
    for modality, rows in encoder.encode(batch.images, batch.texts).items():
        table = np.load(tmp_path / "run" / "features" / f"{modality}.npy")
        np.testing.assert_allclose(rows.numpy(), table[:9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tuned", "frozen"), [("text", "image"), ("image", "text")])
@pytest.mark.parametrize("settings", [PromptConfig(towers="text"), LoraConfig(rank=2, towers="text")])
def test_a_tower_that_is_not_tuned_is_not_run_and_its_features_stay_as_they_are(
    tiny_project: Project, tmp_path: Path, settings: PromptConfig | LoraConfig, tuned: Any, frozen: str
) -> None:
    settings = replace(settings, towers=tuned)
    config = _config(tiny_project, tmp_path / "run", settings.group, settings=settings)
    encoder = check_start(config, load_run(config.stage1))
    assert encoder is not None
    assert list(encoder.towers) == [tuned]
    run_on_ranks(1, train_stage2, config)
    for modality in (tuned, frozen):
        before, after = (np.load(run / f"{modality}.npy") for run in (tiny_project.features, config.out / "features"))
        assert np.array_equal(before, after) == (modality == frozen)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "last_n",
            LastNConfig(n=3),
            "last_n.n: got 3, but the image tower has 3 layers, the text tower has 2",
        ),
        ("lora", LoraConfig(rank=99), "lora.rank: got 99, but the image tower is only 32 wide"),
    ],
)
def test_what_no_tower_can_take_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, method: str, settings: MethodConfig, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_stage2(_config(tiny_project, tmp_path / "run", method, settings=settings))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_method_that_it_began_with(tiny_project: Project, tmp_path: Path) -> None:
    run_on_ranks(1, train_stage2, _config(tiny_project, tmp_path / "run", "lora"))
    with pytest.raises(UserError, match=r"tuning\.method lora -> adapter"):
        train_stage2(_config(tiny_project, tmp_path / "run", "adapter"))
