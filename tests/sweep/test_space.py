"""What a sweep refuses before anything is started or written, and the distributions that it samples from."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ptmrec_dist import cli
from ptmrec_dist.config import RayConfig, SweepConfig, plain_settings
from ptmrec_dist.errors import UserError
from ptmrec_dist.lineage import write_inputs
from ptmrec_dist.sweep.driver import run_sweep
from ptmrec_dist.sweep.space import check_space, grid_points, read_space, settings_of
from ptmrec_dist.training.records import read_record
from tests.conftest import Project


def _config(**changes: Any) -> SweepConfig:
    space = {"prompt.depth": {"choice": [1, "all"]}, "optim.encoder_lr": {"loguniform": [1e-4, 1e-2]}}
    stage2 = {"tuning": {"method": "prompt"}} | changes.pop("stage2", {})
    return SweepConfig(**({"stage1": Path("runs/a"), "out": Path("sweep"), "space": space, "stage2": stage2} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"prompt.dpeth": {"choice": [1]}}}, "dpeth"),
        (
            {"space": {"prompt.length": {"randint": [0, 4]}}},
            "prompt.length = 0: prompt.length: got 0, expected 1 or more",
        ),
        ({"space": {"prompt.length": {"uniform": [1.0, 4.5]}}}, "prompt.length"),
        ({"space": {"optim.encoder_lr": {"loguniform": [0, 1]}}}, "space.optim.encoder_lr"),
        ({"space": {"optim.encoder_lr": {"uniform": [2, 1]}}}, "space.optim.encoder_lr"),
        (
            {"space": {"optim.encoder_lr": {"normal": [0, 1]}}},
            "space.optim.encoder_lr: got normal, expected one of choice",
        ),
        ({"space": {"optim.encoder_lr": {"choice": []}}}, "expected a list of numbers, words"),
        (
            {"space": {"prompt.length": {"randint": [1, 4.0]}}},
            "[1, 4.0], expected [lowest, highest], two whole numbers",
        ),
        ({"space": {"optim.encoder_lr": {"uniform": [float("nan"), 1.0]}}}, "expected [lowest, highest], two numbers"),
        (
            {"space": {"prompt.depth": {"choice": [1, 1]}}},
            "space.prompt.depth: got [1, 1], expected each choice only once",
        ),
        ({"space": {"out": {"choice": ["a", "b"]}}}, "space.out: the sweep itself decides on it"),
        (
            {"space": {"select_on": {"choice": ["validation"]}}},
            "space.select_on: cannot be searched, expected one value for all trials",
        ),
        ({"space": {"prompt.depth": {"choice": [1, 9]}}}, "prompt.depth: got 9, but the image tower has 3 layers"),
        ({"search": "grid"}, "space.optim.encoder_lr: got {'loguniform': [0.0001, 0.01]}, but a grid takes"),
        ({"search": "grid", "trials": 3}, "trials: got 3, expected nothing with --search grid"),
        ({"stage2": {"epoch": 3}}, "epoch"),
        ({"stage2": {"tuning": "prompt"}}, "tuning"),
        ({"stage2": {"tuning": {"method": "lora"}}}, "prompt: got settings of a tuning method that is not used"),
        ({"stage2": {"out": "elsewhere"}}, "stage2.out: the sweep itself decides on it"),
        ({"ranks": 3, "stage2": {"batch_size": 8}}, "batch_size: got 8, expected a multiple of the 3 ranks of a trial"),
        (
            {
                "space": {
                    "tuning.method": {"choice": ["lora", "prompt"]},
                    "prompt.length": {"choice": [2, 0]},
                }
            },
            "tuning.method = 'prompt', prompt.length = 0: prompt.length: got 0, expected 1 or more",
        ),
        ({"resume": True}, "holds no sweep to resume"),
        ({"ray": {"address": "ray://head:10001"}}, "from outside use `ray job submit`"),
        ({"name": "m", "winner_seeds": []}, "without any there is nothing to register"),
    ],
)
def test_what_a_trial_would_refuse_is_refused_before_any_starts(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "stage1": str(tiny_project.stage1),
        "out": str(tmp_path / "out"),
        "space": {"prompt.depth": {"choice": [1, "all"]}, "optim.encoder_lr": {"loguniform": [0.0001, 0.01]}},
        "stage2": {"tuning": {"method": "prompt"}} | changes.pop("stage2", {}),
        "tracking": {"enabled": False},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings | changes))
    assert cli.run("sweep", ["--config", str(tmp_path / "sweep.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_every_choice_and_both_ends_are_read_by_the_parser_of_stage_2() -> None:
    config = _config(stage2={"optim": {"recommender_lr": 0.5}, "epochs": 7})
    read = check_space(config, read_space(config))
    assert {settings.tuning.settings.depth for settings in read} == {1, "all"}
    assert {settings.optim.encoder_lr for settings in read} == {1e-4, 1e-2}
    assert {(settings.epochs, settings.optim.recommender_lr) for settings in read} == {(7, 0.5)}


def test_a_grid_is_every_combination_once() -> None:
    config = _config(search="grid", space={"prompt.depth": {"choice": [1, 2]}, "prompt.length": {"choice": [3, 4, 5]}})
    points = grid_points(read_space(config))
    assert [tuple(point.values()) for point in points] == [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)]


def test_searched_keys_win_over_fixed_ones_and_leave_their_neighbours() -> None:
    config = _config(stage2={"optim": {"encoder_lr": 1.0, "weight_decay": 0.1}})
    settings = settings_of(config, {"optim.encoder_lr": 0.2}, out="x")
    assert settings["optim"] == {"encoder_lr": 0.2, "weight_decay": 0.1}
    assert Path(settings["stage1"]).is_absolute()


@pytest.mark.parametrize(
    ("placement", "nodes", "ranks", "groups"),
    [
        ("PACK", [4, 4], 2, 2),
        ("PACK", [3, 3], 2, 1),  # a rank of two CPUs on each, and one CPU left on each
        ("STRICT_PACK", [4, 3], 2, 1),
        ("STRICT_SPREAD", [8, 4], 2, 2),
        ("STRICT_SPREAD", [8], 2, 0),
        ("SPREAD", [2, 2], 3, 0),
    ],
)
def test_ranks_are_counted_node_by_node(placement: str, nodes: list[int], ranks: int, groups: int) -> None:
    from ptmrec_dist.distributed.cluster import _groups

    config = RayConfig(cpus=2, placement=placement)  # type: ignore[arg-type]
    assert _groups([{"CPU": float(cpus)} for cpus in nodes], ranks, config) == groups


def test_a_sweep_over_a_stage_1_that_was_trained_anew_is_refused_before_ray_is_reached(
    tiny_project: Project, tmp_path: Path
) -> None:
    config = _config(stage1=tiny_project.stage1, out=tmp_path / "sweep")
    inputs = read_record(tiny_project.stage1).inputs
    config.out.mkdir()
    (config.out / "sweep.yaml").write_text(yaml.safe_dump(plain_settings(config)))
    write_inputs(config.out, inputs | {"stage1": "0" * 64})
    message = (
        f"stage1: got {inputs['stage1'][:12]}, but {config.out} was started with 000000000000; give that or choose"
    )
    with pytest.raises(UserError, match=message):
        run_sweep(config)
