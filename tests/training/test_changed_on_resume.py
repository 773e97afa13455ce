"""What may differ when an interrupted run resumes: more or fewer epochs of the same run, another number of workers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import ContrastiveConfig, EncoderConfig, EncoderOptimConfig, OptimConfig, Stage2Config
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.contrastive import fine_tune
from ptmrec_dist.training.run_folder import RunFolder
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.ranks import exit_codes_on_ranks, run_on_ranks
from tests.training.test_stage1 import _config as stage1_config
from tests.training.test_stage1 import _killed_in_epoch_5
from tests.training.test_stage2 import _config as stage2_config
from tests.training.test_stage2 import _killed_at_step

CONSTANT = {"optim": OptimConfig(schedule="constant"), "patience": 99}


def _same(one: Path, other: Path, *names: str) -> None:
    for name in ("metrics.json", "history.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    for name in names:
        expected = load_file(other / name)
        assert all(torch.equal(value, expected[key]) for key, value in load_file(one / name).items())


@pytest.mark.parametrize("epochs", [4, 8])
def test_stage_1_resumes_to_another_number_of_epochs(tiny_project: Project, tmp_path: Path, epochs: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_stage1(stage1_config(tiny_project, whole, epochs=epochs))
    assert exit_codes_on_ranks(1, _killed_in_epoch_5, stage1_config(tiny_project, broken)) == [-9]
    train_stage1(stage1_config(tiny_project, broken, epochs=epochs))
    _same(broken, whole, "recommender.safetensors")


def test_fewer_epochs_than_were_begun_are_refused_and_the_run_still_resumes(
    tiny_project: Project, tmp_path: Path
) -> None:
    config = stage1_config(tiny_project, tmp_path / "run")
    assert exit_codes_on_ranks(1, _killed_in_epoch_5, config) == [-9]
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"epochs: got 3, but .*run is past that; expected 4 or more"):
        train_stage1(replace(config, epochs=3))
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    with pytest.raises(UserError, match=r"other settings \(epochs 6 -> 8, lr 0.02 -> 0.5\)"):
        train_stage1(replace(config, epochs=8, lr=0.5))
    train_stage1(config)


def test_a_folder_of_a_run_of_another_command_is_refused_as_that(tiny_project: Project) -> None:
    """Not by all settings that the two commands do not have in common."""
    config = Stage2Config(stage1=tiny_project.stage1, out=tiny_project.stage1)
    with pytest.raises(UserError, match=r"stage1 holds a run of another command; choose another --out$"):
        RunFolder(config.out, config, {})


def test_a_complete_run_says_that_it_cannot_be_extended(tiny_project: Project, tmp_path: Path) -> None:
    train_stage1(stage1_config(tiny_project, tmp_path / "run", epochs=1))
    for epochs in (0, 2):
        with pytest.raises(UserError, match=rf"is complete with --epochs 1 .* choose another --out to train {epochs}$"):
            train_stage1(stage1_config(tiny_project, tmp_path / "run", epochs=epochs))


@pytest.mark.slow
def test_stage_2_resumes_to_more_epochs_where_learning_rates_are_constant(
    tiny_project: Project, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(1, train_stage2, stage2_config(tiny_project, whole, epochs=3, **CONSTANT))
    begun = stage2_config(tiny_project, broken, epochs=2, **CONSTANT)
    assert exit_codes_on_ranks(1, _killed_at_step, begun, 6) == [-9]
    with pytest.raises(UserError, match=r"epochs: got 1, but .* expected 2 or more"):
        train_stage2(replace(begun, epochs=1))
    run_on_ranks(1, train_stage2, replace(begun, epochs=3))
    _same(broken, whole, "recommender.safetensors", "encoder.safetensors")


def _stage2(project: Project, out: Path, epochs: int) -> Stage2Config:
    return stage2_config(project, out, epochs=epochs, optim=OptimConfig(schedule="cosine"))


def _contrastive(project: Project, out: Path, epochs: int) -> ContrastiveConfig:
    return ContrastiveConfig(
        shards=project.shards,
        encoder=EncoderConfig(model=str(project.clip)),
        out=out,
        epochs=epochs,
        batch_size=12,
        optim=EncoderOptimConfig(schedule="cosine"),
        device="cpu",
        tracking=UNTRACKED,
    )


@pytest.mark.parametrize(("train", "config"), [(train_stage2, _stage2), (fine_tune, _contrastive)])
def test_a_cosine_schedule_depends_on_the_epochs_and_says_so(
    tiny_project: Project, tmp_path: Path, train: Any, config: Any
) -> None:
    from ptmrec_dist.training.run_folder import RunFolder

    RunFolder(tmp_path / "run", config(tiny_project, tmp_path / "run", 2), {}).start()
    with pytest.raises(
        UserError, match=r"was started with 2, got 3, but .* --optim.schedule cosine .* keep --epochs 2"
    ):
        train(config(tiny_project, tmp_path / "run", 3))


@pytest.mark.slow
def test_stage_2_resumes_with_another_number_of_workers_to_the_last_digit(
    tiny_project: Project, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_on_ranks(1, train_stage2, stage2_config(tiny_project, whole))
    begun = stage2_config(tiny_project, broken, workers=3)
    assert exit_codes_on_ranks(1, _killed_at_step, begun, 3) == [-9]
    run_on_ranks(1, train_stage2, replace(begun, workers=0))
    _same(broken, whole, "recommender.safetensors", "encoder.safetensors")
