"""Sweeps over stage 1: what is refused before anything is started or written, and the settings that trials get."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ptmrec_dist import cli
from ptmrec_dist.config import AshaConfig, Stage1Config, SweepConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.sweep.space import check_space, read_by, read_space, settings_of
from ptmrec_dist.sweep.stages import STAGES
from tests.conftest import Project

LAYERS = {"recommender": {"choice": ["vbpr", "lightgcn"]}, "model.layers": {"choice": [1, 3]}}


def _config(**changes: Any) -> SweepConfig:
    train = {"shards": "shards", "features": "features"} | changes.pop("train", {})
    space = {"lr": {"loguniform": [0.001, 0.1]}}
    return SweepConfig(**({"train": train, "out": Path("sweep"), "space": space} | changes))


def _checked(**changes: Any) -> list[Stage1Config]:
    config = _config(**changes)
    return check_space(config, read_space(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"lr": {"uniform": [0.0, 1.0]}}}, "lr = 0.0: lr: got 0.0, expected more than 0"),
        ({"space": {"model.reg_weight": {"uniform": [0.0, -1.0]}}}, "space.model.reg_weight"),
        ({"space": {"model.reg_weight": {"uniform": [-1.0, 0.0]}}}, "model.reg_weight: got -1.0, expected 0 or more"),
        ({"space": {"model.dmi": {"choice": [1]}}}, "unknown: model.dmi; the nearest is model.dim"),
        ({"space": {"recommender": {"choice": ["vbpr", "vbbpr"]}}}, "recommender: got 'vbbpr', expected one of"),
        ({"space": {"model.layers": {"choice": [1]}}}, "unknown: model.layers"),
        ({"space": LAYERS | {"model.knn": {"choice": [1]}}}, "unknown: model.knn"),
        (
            {"space": LAYERS | {"model.layers": {"choice": [1, -1]}}},
            "recommender = 'lightgcn', model.layers = -1: model.layers: got -1, expected 0 or more",
        ),
        ({"train": {"epcohs": 3}}, "unknown: epcohs; the nearest is epochs"),
        ({"train": {"recommender": "vbpr", "loss": "bce"}}, "loss: got 'bce', expected inbatch with vbpr"),
        ({"train": {"recommender": ["vbpr"]}}, "recommender: got ['vbpr'], expected one of"),
        ({"train": {"out": "elsewhere"}}, "train.out: the sweep itself decides on it; leave it out"),
        ({"space": {"epochs": {"choice": [1]}}}, "space.epochs: cannot be searched, expected one value for all trials"),
        ({"stage1": Path("runs/a")}, "expected either stage1, a run of stage 1, to search stage 2, or train"),
        ({"train": {}, "stage2": {"epochs": 2}}, "stage2: got {'epochs': 2}, expected none with train"),
        ({"shards": Path("s")}, "shards: got s, expected none with train.shards"),
        ({"train": {3: 4}}, "train: got 3, expected names of settings as keys"),
    ],
)
def test_what_stage_1_would_refuse_is_refused_by_its_own_parser(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _checked(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_of_no_stage_is_refused() -> None:
    with pytest.raises(UserError, match="stage1: got none, expected either stage1"):
        SweepConfig(out=Path("a"), space={"lr": {"choice": [1]}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": "nowhere"}, "shards: "),
        ({"shards": "s3://bucket/shards"}, "expected a local path; give a URL by --shards"),
        ({"features": None}, "features: vbpr reads images and texts; add --features"),
        ({"init": "als", "recommender": "sasrec"}, "init: got 'als', expected none with sasrec"),
        ({"from_run": "nowhere"}, "from: "),
    ],
)
def test_data_that_a_trial_would_refuse_are_refused_before_any_starts(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"shards": str(tiny_project.shards), "features": str(tiny_project.features)} | changes
    settings = {"out": str(tmp_path / "out"), "train": train, "space": {"lr": {"choice": [0.1]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings))
    assert cli.run("sweep", ["--config", str(tmp_path / "sweep.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_recommender_gets_its_own_hyper_parameters_alone() -> None:
    points = _checked(space=LAYERS, train={"model": {"dim": 8, "layers": 2}})
    read = {(one.recommender, str(one.model)) for one in points}
    assert read == {
        ("vbpr", "VBPRConfig(dim=8, reg_weight=None)"),
        ("lightgcn", "LightGCNConfig(dim=8, layers=1, reg_weight=0.01)"),
        ("lightgcn", "LightGCNConfig(dim=8, layers=3, reg_weight=0.01)"),
    }


def test_a_trial_reads_what_its_recommender_has_and_nothing_else_of_its_point() -> None:
    point = {"lr": 0.1, "recommender": "lightgcn", "model.layers": 3}
    config = _config(space=LAYERS)
    assert read_by(config, point) == point
    assert read_by(config, point | {"recommender": "vbpr"}) == {"lr": 0.1, "recommender": "vbpr"}


def test_paths_are_absolute_and_those_beside_train_count_as_in_it(tmp_path: Path) -> None:
    in_train = settings_of(_config(train={"from_run": "runs/a"}), {"lr": 0.1}, out="x")
    assert {name: in_train[name] for name in ("shards", "features", "from_run")} == {
        "shards": str(Path("shards").resolve()),
        "features": str(Path("features").resolve()),
        "from_run": str(Path("runs/a").resolve()),
    }
    beside = SweepConfig(
        train={"recommender": "bpr"}, shards=Path("shards"), out=Path("a"), space={"lr": {"choice": [1]}}
    )
    assert settings_of(beside, {}, out="x")["shards"] == in_train["shards"]


def test_known_items_decide_as_they_do_in_stage_1(tiny_project: Project) -> None:
    train = {"shards": str(tiny_project.shards), "features": str(tiny_project.features), "epochs": 7}
    config = _config(train=train, space=LAYERS | {"recommender": {"choice": ["bpr", "vbpr"]}})
    del config.space["model.layers"]
    common = STAGES["stage1"].check(config, check_space(config, read_space(config)))
    assert (common.part, common.keep, common.epochs) == ("validation", "best", 7)
    assert {"shards", "features"} <= common.inputs.keys()  # though bpr reads none


def test_the_first_rung_is_later_where_epochs_are_shorter() -> None:
    assert _config().asha.grace == 10
    assert SweepConfig(stage1=Path("a"), out=Path("b"), space={"kt_weight": {"choice": [1]}}).asha.grace == 1
    assert _config(asha=AshaConfig(grace=3)).asha.grace == 3
