"""A gradient that is infinite or not a number, although the loss is finite: the run ends, and nothing has seen it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.distributed import join_world
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.batches import StreamedBatches
from ptmrec_dist.training.tune import make_trainer
from tests.conftest import Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks
from tests.training.gradient_world import ROWS, NoStream, Setting, config_of, item_windows
from tests.training.steps import temporary_session
from tests.training.tuner_world import Case, make_tuner

pytestmark = pytest.mark.slow


def _spoilt(forward: Callable[..., Any], factor: float, when: int) -> Callable[..., Any]:
    """The same losses; the gradient of call number `when` is multiplied on the last rank."""
    calls = 0

    def losses(*inputs: Any) -> Any:
        nonlocal calls
        output, calls = forward(*inputs), calls + 1
        if calls == when and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            output["bpr"].register_hook(lambda gradient: gradient * factor)
        return output

    return losses


def _second_step(project: Project, zero: int, factor: float, every: int) -> tuple[str, bool]:
    """What a step with a bad gradient says after a good one, and whether it left the weights as they were."""
    world = join_world("cpu")
    model, dataset = make_tuner(project.shards, project.features, project.clip, Case(), ROWS)
    window = item_windows(model, dataset, 2, world.rank if world.size > 1 else None)["uneven"]
    config = config_of(Setting(Case(), zero), world, learning_rate=0.1, check_every=every)
    model.forward = _spoilt(model.forward, factor, when=2)  # type: ignore[method-assign]
    model.rows = ROWS * 2
    with temporary_session(config, world) as session:
        trainer = make_trainer(config, session, model, StreamedBatches(NoStream()))

        def weights() -> dict[str, Tensor]:
            with trainer.engine.whole():
                return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

        begin = weights()
        trainer.train_step(window)
        before = weights()
        assert any(not torch.equal(value, begin[name]) for name, value in before.items())
        message = "nothing"
        try:
            trainer.train_step(window)
            trainer.read_losses()
        except UserError as error:
            message = str(error)
        untouched = all(torch.equal(value, before[name]) for name, value in weights().items())
        if zero_engine := getattr(trainer.engine, "_engine", None):
            zero_engine.destroy()
    return message, untouched


def _on_every_stage(project: Project, every: int) -> dict[tuple[int, float], tuple[str, bool]]:
    factors = (float("nan"), float("inf"))
    return {(zero, factor): _second_step(project, zero, factor, every) for zero in range(4) for factor in factors}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("every", [1, 10])
def test_a_bad_gradient_is_named_on_every_zero_stage_and_leaves_the_weights_alone(
    tiny_project: Project, ranks: int, every: int
) -> None:
    for found in run_on_ranks(ranks, _on_every_stage, tiny_project, every):
        assert len(found) == 8
        for (zero, _), (message, untouched) in found.items():
            assert message == (
                "loss: the gradient is not finite at step 2; the last checkpoint is from before it; lower "
                "--optim.encoder_lr or --optim.recommender_lr"
            )
            # Without ZeRO no gradient is checked between two readings, but nothing is kept before the next one.
            assert untouched or ((zero == 0 or ranks == 1) and every == 10)


def _stage1_spoilt_in_epoch_3(arguments: list[str], logs: Path) -> None:
    from ptmrec_dist.training.objectives.ranking import Ranking

    Ranking.forward = _spoilt(Ranking.forward, float("inf"), when=8)  # type: ignore[method-assign]
    command_on_rank("stage1", arguments, logs)


@pytest.mark.parametrize(("ranks", "zero"), [(1, "1"), (2, "0"), (2, "1"), (2, "2")])
def test_stage_1_ends_with_code_2_and_what_it_kept_is_from_before(
    tiny_project: Project, tmp_path: Path, ranks: int, zero: str
) -> None:
    run = tmp_path / "run"
    arguments = [
        *(
            "--shards",
            str(tiny_project.shards),
            "--features",
            str(tiny_project.features),
            "--out",
            str(run),
            "--zero.stage",
            zero,
        ),
        *("--epochs", "3", "--batch_size", "100", "--checkpoint_every", "3", "--model.dim", "8", "--device", "cpu"),
        *("--tracking.enabled", "false"),
    ]
    assert exit_codes_on_ranks(ranks, _stage1_spoilt_in_epoch_3, arguments, tmp_path) == [2] * ranks
    (line,) = (tmp_path / "rank0").read_text().splitlines()[-1:]
    assert (
        "error: loss: the gradient is not finite at step 8; the last checkpoint is from before it; lower --lr" in line
    )
    assert all(value.isfinite().all() for value in load_file(run / "recommender.safetensors").values())
    assert sorted(path.name[-1] for path in (run / "checkpoints").iterdir()) == ["3", "6"]
    assert not (run / "metrics.json").exists()
    assert exit_codes_on_ranks(ranks, command_on_rank, "stage1", arguments, tmp_path) == [0] * ranks
