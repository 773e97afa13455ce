"""PTMRec on sequences: its loss against one written out, what it trains, ranks, resuming, cold items, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.config import (
    EvaluateConfig,
    OptimConfig,
    Stage1Config,
    Stage2Config,
    TuningConfig,
    ZeroConfig,
    recommender_config,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.sequences import TrainingSequences
from ptmrec_dist.distributed import World
from ptmrec_dist.errors import UserError
from ptmrec_dist.recommenders import recommender_class
from ptmrec_dist.recommenders.base import Inputs
from ptmrec_dist.training.batches import item_stream
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.objectives.live_sequence import LiveInputs
from ptmrec_dist.training.objectives.next_item_transfer import NextItemTeacher, NextItemTransfer
from ptmrec_dist.training.records import read_record
from ptmrec_dist.training.sequence_batches import SequenceBatches
from ptmrec_dist.training.stage1 import train_stage1
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks
from tests.training.steps import terminate_first_rank_before_step

LENGTH, DIM, WEIGHT, TEMPERATURE = 4, 6, 0.7, 1.5


def _stage1(project: Project, out: Path, recommender: str, **model: Any) -> Path:
    small = recommender_config(recommender, **({"dim": DIM, "length": LENGTH, "dropout": 0.0} | model))
    config = Stage1Config(
        shards=project.shards,
        features=project.features,
        out=out,
        recommender=recommender,
        model=small,
        epochs=1,
        device="cpu",
        tracking=UNTRACKED,
    )
    train_stage1(config)
    return out


@pytest.fixture(scope="module")
def runs(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sequences")
    wide = _stage1(tiny_project, root / "wide", "gru4rec", dim=9)
    small = {"contrast": "none", "nid": "none", "rcl": "none", "fusion_heads": 2}
    return {name: _stage1(tiny_project, root / name, name) for name in ("sasrec", "morec")} | {
        "pmmrec": _stage1(tiny_project, root / "pmmrec", "pmmrec", **small),
        "wide": wide,
    }


def _config(runs: dict[str, Path], out: Path, **changes: Any) -> Stage2Config:
    settings: dict[str, Any] = {
        "stage1": runs["morec"],
        "teacher_run": runs["sasrec"],
        "out": out,
        "tuning": TuningConfig(method="prompt"),
        "epochs": 2,
        "refresh_every": 1,
        "batch_size": 50,
        "checkpoint_every": 1,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return Stage2Config(**(settings | changes))


def _objective(data: Path, teachers_states: bool) -> NextItemTransfer:
    """In float64, on stored features, with weights that matter."""
    dataset, generator = Dataset(data), torch.Generator().manual_seed(0)
    tables = {
        name: torch.randn(dataset.num_items, width, generator=generator) for name, width in (("image", 5), ("text", 4))
    }
    models: list[Any] = []
    for kind, features, length in (("morec", tables, LENGTH), ("sasrec", {}, LENGTH + 2)):
        inputs = Inputs(dataset.num_users, dataset.num_items, dataset.interactions("train"), features)
        model = recommender_class(kind)(inputs, recommender_config(kind, dim=DIM, length=length, dropout=0.0)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.7, generator=generator)
        models.append(model)
    world, sequences = World(0, 1, torch.device("cpu")), TrainingSequences(dataset, LENGTH)
    features = {name: table.double() for name, table in tables.items()}
    return NextItemTransfer(
        LiveInputs(None, models[0], features, {}, sequences, world),
        3,
        teacher=NextItemTeacher(models[1], {}),
        weight=WEIGHT,
        temperature=TEMPERATURE,
        teachers_states=teachers_states,
    )


def _written_out(objective: NextItemTransfer, data: Path, users: list[int]) -> Tensor:
    """KL of every position, the histories and items of each looked up one by one."""
    train, model, teacher = Dataset(data).sequences("train"), objective.recommender, objective.teacher.recommender
    taken = {user: train.items[train.users == user].tolist() for user in users}
    windows = {user: items[-LENGTH - 1 :] for user, items in taken.items()}
    step = sorted({item for window in windows.values() for item in window})
    found = []
    for user, window in windows.items():
        for end in range(1, len(window)):
            read, target = torch.tensor([window[:-1]]), window[end]  # later items have positions, but are not seen
            compared = [item for item in step if item == target or item not in taken[user]]
            features = {name: table[compared] for name, table in objective.features.items()}
            own = model.item_vectors({name: table[read[0]] for name, table in objective.features.items()})[None]
            taught = teacher.item_vectors({}, read[0])[None]
            mask = torch.ones_like(read, dtype=torch.bool)
            state, teachers = (
                reader.states(items, mask)[0, end - 1] for reader, items in ((model, own), (teacher, taught))
            )
            wanted = (teacher.item_vectors({}, torch.tensor(compared)) @ teachers / TEMPERATURE).softmax(dim=0).detach()
            chosen = teachers.detach() if objective.teachers_states else state
            for modality, projection in model.projections.items():
                scores = projection(features[modality]) @ chosen / TEMPERATURE
                found.append((wanted * (wanted.log() - scores.log_softmax(dim=0))).sum())
    return WEIGHT * torch.stack(found).sum() / (len(found) / 2)


@pytest.mark.parametrize("teachers_states", [False, True])
def test_the_loss_and_its_gradients_are_those_written_out(tiny_project: Project, teachers_states: bool) -> None:
    objective = _objective(tiny_project.shards, teachers_states)
    _, latest = np.unique(objective.sequences.users, return_index=True)
    batch = SequenceBatches(objective.sequences, 100, objective.world).batch(latest[:7])
    loss, expected = objective(batch, 0)["kt"], _written_out(objective, tiny_project.shards, batch.users.tolist())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    names, parameters = zip(*objective.named_parameters(), strict=True)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    gradients = [torch.autograd.grad(value, parameters, **options) for value in (loss, expected)]
    for name, found, wanted in zip(names, *gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10, msg=name)
        moves = "projections" in name or not teachers_states
        assert bool(found.any()) == moves or "in_proj_bias" in name, name


def _losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss")} for line in lines]


@pytest.mark.slow
def test_prompts_alone_are_tuned_in_the_encoder_and_cold_items_are_scored_by_what_it_gives(
    tiny_project: Project, runs: dict[str, Path], tmp_path: Path
) -> None:
    optim = OptimConfig(encoder_lr=0.1, recommender_lr=0.0)
    for stage1 in ("morec", "pmmrec"):
        out = tmp_path / stage1
        train_stage2(_config(runs, out, stage1=runs[stage1], optim=optim, user_states="teacher"))
        assert set(load_file(out / "encoder.safetensors")) == {
            "attached.image.vectors_PLD",
            "attached.text.vectors_PLD",
        }
        for name, value in load_file(runs[stage1] / "recommender.safetensors").items():
            assert torch.equal(load_file(out / "recommender.safetensors")[name], value), name
        record, start, end = read_record(out), load_run(runs[stage1]), load_run(out)
        assert record.teacher is not None
        assert record.teacher["fingerprint"] == read_record(runs["sasrec"]).fingerprint
        cold = torch.from_numpy(end.dataset.cold_items("cold_test"))
        before, after = ({name: table[cold] for name, table in run.features.items()} for run in (start, end))
        scored = [end.recommender.cold_items(features) for features in (before, after)]
        assert (scored[0] - scored[1]).abs().max() > 1e-3
        metrics = json.loads((out / "metrics.json").read_text())
        evaluate_run(EvaluateConfig(run=out, device="cpu"))
        assert json.loads((out / "metrics.json").read_text()) == metrics


def _stopped_after(config: Stage2Config, steps: int) -> None:
    terminate_first_rank_before_step(steps)
    train_stage2(config)


@pytest.mark.slow
def test_two_ranks_and_an_interrupted_run_end_like_one_process(runs: dict[str, Path], tmp_path: Path) -> None:
    one, two, broken = (tmp_path / name for name in ("one", "two", "broken"))
    train_stage2(_config(runs, one))
    zero = ZeroConfig(stage=2)
    run_on_ranks(2, train_stage2, _config(runs, two, zero=zero, workers=1))
    run_on_ranks(2, _stopped_after, _config(runs, broken, zero=zero), 2)
    assert (broken / "checkpoints").is_dir()
    run_on_ranks(2, train_stage2, _config(runs, broken, zero=zero))
    for found, expected in zip(_losses(two), _losses(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert (broken / "history.jsonl").read_text() == (two / "history.jsonl").read_text()
    for file in ("recommender.safetensors", "encoder.safetensors"):
        for name, value in load_file(two / file).items():
            assert torch.equal(load_file(broken / file)[name], value), name


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny_project: Project, runs: dict[str, Path], tmp_path: Path
) -> None:
    fdsa = _stage1(tiny_project, tmp_path / "fdsa", "fdsa", inner=8)
    short = _stage1(tiny_project, tmp_path / "short", "sasrec", length=2)
    for changes, message in (
        ({"stage1": runs["sasrec"]}, "stage1: got a run of SASRec, which scores no modality alone"),
        ({"stage1": fdsa}, "stage1: got a run of FDSA, which scores no modality alone"),
        (
            {"teacher_run": tiny_project.stage1},
            "teacher_run: got 'a run of vbpr', expected one of a sequence recommender",
        ),
        ({"teacher_run": short}, "teacher_run: got 'a history of 2 items', expected 4 or more"),
        ({"teacher_run": runs["wide"], "user_states": "teacher"}, "user_states: got 'teacher', expected modal, or"),
        ({"teacher": "live"}, "teacher: got 'live', expected stage1 with morec"),
        ({"batching": "interaction"}, "batching: got 'interaction', expected the default with morec"),
        ({"batch_size": 1}, "batch_size: got 1, expected more, such as"),
        ({"accumulation": 2}, "accumulation: got 2, expected 1 with morec"),
        ({"stage1": tiny_project.stage1}, "teacher_run: got .*, expected none with vbpr"),
    ):
        with pytest.raises(UserError, match=message):
            train_stage2(_config(runs, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_batches_that_are_made_ahead_are_the_same(tiny_project: Project, runs: dict[str, Path], tmp_path: Path) -> None:
    for workers in (0, 2):
        train_stage2(_config(runs, tmp_path / str(workers), workers=workers))
    assert (tmp_path / "0" / "history.jsonl").read_text() == (tmp_path / "2" / "history.jsonl").read_text()
    for path in (tmp_path / "0" / "features").glob("*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(tmp_path / "2" / "features" / path.name))


def test_more_processes_than_shards_decode_ahead_but_do_not_read_shards(tiny_project: Project, tmp_path: Path) -> None:
    dataset, world = Dataset(tiny_project.shards), World(0, 2, torch.device("cpu"))
    shards = len(dataset.manifest.shards)
    config = _config({"morec": tmp_path, "sasrec": tmp_path}, tmp_path / "run", workers=shards)
    assert item_stream(config, dataset, Reader(), world, 4).workers == shards // 2
    with pytest.raises(UserError, match="lower --workers"):
        item_stream(config, dataset, Reader(), world, 4, seed=0)
