"""Stage 1 from packed data to a run folder: what it learns, resuming after a kill, and refusals."""

import contextlib
import io
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import EvaluateConfig, Stage1Config, Stage1ZeroConfig, recommender_config
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import join_world, sum_over_ranks
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_yaml
from ptmrec_dist.recommenders import recommender_class
from ptmrec_dist.training import stage1
from ptmrec_dist.training.early_stopping import EarlyStopping
from ptmrec_dist.training.evaluating import evaluate_run
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.inputs import open_store
from ptmrec_dist.training.stage1 import make_objective, make_trainer, train_on, train_stage1
from tests.conftest import UNTRACKED, Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks
from tests.recommenders.conftest import for_few_items, is_sequential
from tests.training.steps import kill_before_step, temporary_session, terminate_first_rank_before_step


def _config(project: Project, out: Path, **changes: Any) -> Stage1Config:
    name = changes.get("recommender", "vbpr")
    settings: dict[str, Any] = {
        "shards": project.shards,
        "features": project.features,
        "out": out,
        "epochs": 6,
        "batch_size": 64,
        "checkpoint_every": 10,
        "model": recommender_config(name, **{"dim": 8, **for_few_items(name)}),
        "lr": 0.02,
        "tracking": UNTRACKED,
    }
    return Stage1Config(**(settings | changes))


def _metrics(run: Path) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = json.loads((run / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize(("patience_after", "epochs"), [(0, 1 + 2), (1000, 9)])
def test_patience_does_not_run_out_within_the_first_steps(
    tiny_project: Project, tmp_path: Path, patience_after: int, epochs: int
) -> None:
    # So small a learning rate changes no ranking: no epoch is better than the first.
    settings: dict[str, Any] = {"lr": 1e-12, "patience": 2, "epochs": 9, "patience_after": patience_after}
    train_stage1(_config(tiny_project, tmp_path / "run", recommender="bpr", **settings))
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == epochs


def test_the_learning_rate_is_the_recommenders_unless_one_is_given(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECOMMENDERS, "bpr", replace(RECOMMENDERS["bpr"], learning_rate=0.125))
    found = []
    for lr, recorded in ((None, 0.125), (0.125, 0.125), (0.5, 0.5)):
        run = tmp_path / str(lr)
        train_stage1(_config(tiny_project, run, recommender="bpr", lr=lr, epochs=1))
        assert read_yaml(run / "config.yaml", "out")["lr"] == recorded
        found.append(load_file(run / "recommender.safetensors")["user_embeddings.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_resumed_run_reports_the_evaluations_before_the_interruption_too(
    tiny_project: Project, tmp_path: Path
) -> None:
    config = _config(tiny_project, tmp_path / "run", recommender="bpr", epochs=4, eval_every=2, checkpoint_every=1)

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(config, Dataset(config.shards), stop)
    lines: list[dict[str, Any]] = []
    train_on(config, Dataset(config.shards, with_test=False), lines.append)
    assert [line["epoch"] for line in lines] == [2, 4]
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert lines == [json.loads(line) for line in history]
    assert _metrics(tmp_path / "run").keys() == {"validation"}


def _stopped_at(values: list[float], **settings: Any) -> int | None:
    """Number of the evaluation after which training stops."""
    stopping = EarlyStopping(**settings)
    for number, value in enumerate(values, start=1):
        stopping.update(value, 5 * number)  # every fifth epoch is evaluated
        if stopping.should_stop:
            return number
    return None


def test_patience_grows_with_the_evaluations_that_the_best_one_took() -> None:
    rising = [number / 100 for number in range(1, 31)]  # the best is the 30th
    plateau = [*rising, *[0.0] * 40]
    assert _stopped_at(plateau, patience=4) == 34
    assert _stopped_at(plateau, patience=4, growth=0.5) == 30 + 4 + 15
    assert _stopped_at(plateau, patience=4, growth=0.33) == 30 + 4 + 9
    assert _stopped_at([1.0, *plateau], patience=4, growth=0.5) == 1 + 4  # the first was the best: nothing is added
    late = [*rising, *[0.0] * 18, 0.5, *[0.0] * 40]  # better at the 49th: patience is counted from there, and longer
    assert _stopped_at(late, patience=3, growth=0.5) == 30 + 3 + 15
    assert _stopped_at(late, patience=5, growth=0.5) == 49 + 5 + 24
    assert _stopped_at(plateau, patience=4, growth=0.5, after=5 * 40) == 40 + 4 + 15
    assert _stopped_at(plateau, patience=1, growth=0.5, keep="last") is None


@pytest.mark.parametrize("growth", [-0.1, float("inf"), float("nan")])
def test_a_patience_that_cannot_grow_is_refused(tiny_project: Project, tmp_path: Path, growth: float) -> None:
    with pytest.raises(UserError, match="patience_growth: got"):
        _config(tiny_project, tmp_path / "run", patience_growth=growth)


def test_patience_runs_out_once_the_steps_are_done(tiny_project: Project, tmp_path: Path) -> None:
    steps_an_epoch = -(-len(Dataset(tiny_project.shards).interactions("train").users) // 64)
    settings: dict[str, Any] = {"lr": 1e-12, "patience": 2, "epochs": 9, "patience_after": 4 * steps_an_epoch}
    train_stage1(_config(tiny_project, tmp_path / "run", recommender="bpr", **settings))
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 4 + 2


@pytest.mark.slow
@pytest.mark.parametrize("recommender", RECOMMENDERS)
def test_every_recommender_learns_who_likes_what(tiny_project: Project, tmp_path: Path, recommender: str) -> None:
    run = tmp_path / "run"
    known = {item.name for item in fields(RECOMMENDERS[recommender].config)}
    weight = {"reg_weight": 1e-3} if "reg_weight" in known else {}
    # So narrow vectors cannot spare half of their values.
    dropout = {"dropout": 0.1} if is_sequential(recommender) else {}
    model = recommender_config(recommender, **({"dim": 8} | weight | dropout | for_few_items(recommender)))
    # A network of several layers learns at lower rates than tables do.
    lr = 0.01 if recommender in ("pmmrec", "carca") else 0.02
    train_stage1(_config(tiny_project, run, recommender=recommender, epochs=25, model=model, lr=lr))
    metrics = _metrics(run)
    cold = {"cold_validation", "cold_test"} if recommender_class(recommender).multimodal else set()
    assert set(metrics) == {"validation", "test"} | cold
    # Each user likes a third of about 48 items, and most of it is masked: chance level is about .4 at 20.
    assert metrics["test"]["recall@20"] > 0.7
    for part in cold:  # of 9 and 3 items, whose first 20 are all of them; chance level of NDCG is .59 and .71
        assert metrics[part]["ndcg@10"] > 0.8, part


def _killed_in_epoch_5(config: Stage1Config) -> None:
    """An epoch has 5 steps."""
    kill_before_step(23)
    train_stage1(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recommender", "every"),
    [
        ("vbpr", 10),
        ("vbpr", 7),
        ("freedom", 7),
        ("buir", 7),
        ("smore", 11),
        ("lattice", 7),
        ("mmgcl", 7),
        ("sasrec", 7),
        ("carca", 7),
        ("vqrec", 7),
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path, recommender: str, every: int
) -> None:
    """It resumes within an epoch (7: at its second step, 11: at its third), or where one begins (10)."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings: dict[str, Any] = {"recommender": recommender, "checkpoint_every": every}
    train_stage1(_config(tiny_project, whole, **settings))
    assert exit_codes_on_ranks(1, _killed_in_epoch_5, _config(tiny_project, broken, **settings)) == [-9]
    assert not (broken / "metrics.json").exists()
    train_stage1(_config(tiny_project, broken, **settings))
    assert _metrics(broken) == _metrics(whole)
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    expected = load_file(whole / "recommender.safetensors")
    for name, value in load_file(broken / "recommender.safetensors").items():
        assert torch.equal(value, expected[name]), name


def _terminated(config: Stage1Config, step: int) -> str:
    terminate_first_rank_before_step(step)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train_stage1(config)
    return out.getvalue()


@pytest.mark.slow
def test_a_terminated_run_says_where_it_was_and_ends_like_an_undisturbed_one(
    tiny_project: Project, tmp_path: Path
) -> None:
    """Once within an epoch, where the losses are read, and once at its end, before it is evaluated."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_stage1(_config(tiny_project, whole))
    assert (
        "interrupted at step 5; run the same command to resume"
        in run_on_ranks(1, _terminated, _config(tiny_project, broken), 1)[0]
    )
    assert "interrupted at step 9; run" in run_on_ranks(1, _terminated_within, _config(tiny_project, broken), 8)[0]
    assert not (broken / "metrics.json").exists()
    train_stage1(_config(tiny_project, broken))
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    assert (broken / "recommender.safetensors").read_bytes() == (whole / "recommender.safetensors").read_bytes()


def _terminated_within(config: Stage1Config, step: int) -> str:
    stage1._CHECK_EVERY = 1
    return _terminated(config, step)


def test_weights_that_cannot_be_written_end_all_ranks(tiny_project: Project, tmp_path: Path) -> None:
    (tmp_path / "run" / "recommender.safetensors.new").mkdir(parents=True)  # where they are written first
    arguments = ["--shards", str(tiny_project.shards), "--recommender", "bpr", "--epochs", "1", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "run"), "--tracking.enabled", "false"]
    assert exit_codes_on_ranks(2, command_on_rank, "stage1", arguments, tmp_path) == [3, 3]
    assert "cannot write the weights" in (tmp_path / "rank0").read_text()


def test_one_seed_gives_one_result(tiny_project: Project, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_stage1(_config(tiny_project, tmp_path / name, seed=seed, epochs=2))
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")
    assert _metrics(tmp_path / "a") != _metrics(tmp_path / "c")


CASES = [
    ("lightgcn", 0),
    ("buir", 1),
    ("vbpr", 1),
    ("freedom", 2),
    ("mgcn", 1),
    ("smore", 1),
    ("mmgcn", 1),
    ("lattice", 2),
    ("slmrec", 1),
    ("mmgcl", 1),
]


def _trained(configs: list[Stage1Config]) -> list[dict[str, Any]]:
    """Of each run: the first batch's gradients, weights after two epochs, the share of moments that this rank keeps."""
    found = []
    for config in configs:
        dataset, world = Dataset(config.shards), join_world("cpu")
        objective = make_objective(config, dataset, open_store(config, dataset), world)
        with temporary_session(config, world) as session:
            trainer: Any = make_trainer(config, session, objective, dataset)
            gradients = _first_gradients(trainer)
            trainer.fit()
            kept = sum(entry["exp_avg"].numel() for entry in trainer.engine.optimizer.state.values())
        fraction = kept / objective.parameter_counts()["trainable"]
        found.append({"gradients": gradients, "weights": objective.weights(), "fraction": fraction})
    return found


def _first_gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Gradients of 101 rows, as the mean over the ranks of what each computes from its part."""
    batch = trainer.batches.batch(torch.arange(101), torch.Generator().manual_seed(0))
    parameters = dict(trainer.objective.named_parameters())
    fresh = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():  # weights large enough that every term matters
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters.values():
            parameter.normal_(std=0.5, generator=generator)
    loss = torch.stack(list(trainer.objective(batch, 0).values())).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(fresh[name])
    return {name: sum_over_ranks(grad) / trainer.world.size for name, grad in zip(parameters, gradients, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one_process_does_on_the_same_batches(tiny_project: Project, tmp_path: Path, ranks: int) -> None:
    # 101 rows, and those of the last batch of an epoch, cannot be shared out evenly.
    configs = [
        _config(
            tiny_project,
            tmp_path,
            recommender=name,
            batch_size=100,
            epochs=2,
            lr=1e-3,
            zero=Stage1ZeroConfig(stage=stage),
        )
        for name, stage in CASES
    ]
    expected = _trained(configs)
    for on_rank in run_on_ranks(ranks, _trained, configs):
        for (recommender, stage), found, wanted in zip(CASES, on_rank, expected, strict=True):
            for kind in ("gradients", "weights"):
                for name, value in wanted[kind].items():
                    # Adam makes steps of lr even of gradients that are nothing but rounding.
                    atol = 1e-5 * (value.abs().max().item() if kind == "gradients" else 1)
                    label = f"{recommender} {kind} {name}"
                    np.testing.assert_allclose(found[kind][name], value.numpy(), rtol=1e-5, atol=atol, err_msg=label)
            # ZeRO divides the optimiser's state, up to what rounds the shares up.
            assert found["fraction"] == pytest.approx(1 / ranks if stage else 1, rel=0.05)


def test_evaluating_a_run_anew_gives_the_same_metrics(tiny_project: Project, tmp_path: Path) -> None:
    train_stage1(_config(tiny_project, tmp_path / "run", epochs=3))
    before = _metrics(tmp_path / "run")
    evaluate_run(EvaluateConfig(run=tmp_path / "run", device="cpu"))
    assert _metrics(tmp_path / "run") == before


def test_a_finished_run_is_left_alone(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tiny_project, tmp_path / "run", epochs=1)
    train_stage1(config)
    before = (tmp_path / "run" / "recommender.safetensors").read_bytes()
    train_stage1(config)
    assert "is complete; nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "recommender.safetensors").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused_by_name(tiny_project: Project, tmp_path: Path) -> None:
    train_stage1(_config(tiny_project, tmp_path / "run", epochs=1))
    with pytest.raises(UserError, match=r"other settings \(lr 0.02 -> 0.5\); choose another --out"):
        train_stage1(_config(tiny_project, tmp_path / "run", epochs=1, lr=0.5))


def test_trained_feature_tables_are_saved_and_loaded(tiny_project: Project, tmp_path: Path) -> None:
    train_stage1(_config(tiny_project, tmp_path / "run", epochs=3, train_features=True))
    frozen = load_run(tiny_project.stage1).features["image"]
    trained = load_run(tmp_path / "run").features["image"]
    assert not torch.equal(trained, frozen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, "features: vbpr reads images and texts; add --features"),
        ({"features": Path("nowhere")}, "features: no files at nowhere; expected a folder"),
        ({"shards": Path("nowhere")}, "nowhere"),
        ({"model": recommender_config("bpr")}, "model: got 'BPRConfig', expected a VBPRConfig"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_stage1(replace(_config(tiny_project, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_features_of_other_data_are_refused_with_both_fingerprints(tiny_project: Project, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    manifest = json.loads((tiny_project.features / "manifest.json").read_text())
    (features / "manifest.json").write_text(json.dumps(manifest | {"data": "f" * 64}))
    with pytest.raises(UserError, match=r"was made from data ffffffffffff, but the shards are [0-9a-f]{12}; run"):
        train_stage1(_config(tiny_project, tmp_path / "run", features=features))


def test_features_of_another_width_than_their_manifest_says_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(tiny_project.features, features)
    table = np.load(features / "image.npy")
    np.save(features / "image.npy", table[:, :-1])
    with pytest.raises(UserError, match=r"image.npy is float32 \(60, \d+\), expected float32 \(60, \d+\)"):
        train_stage1(_config(tiny_project, tmp_path / "run", features=features))
    assert not (tmp_path / "run").exists()


def test_parameters_are_counted_by_where_they_lie(tiny_project: Project, tmp_path: Path) -> None:
    dataset = Dataset(tiny_project.shards)
    width = sum(np.load(tiny_project.features / f"{modality}.npy").shape[1] for modality in ("image", "text"))
    ids, tables = dataset.num_users * 16 + dataset.num_items * 8, dataset.num_items * width
    rest = width * 8 + width * 16  # what it trains, and the maps that score cold items
    for trained in (False, True):
        run = tmp_path / str(trained)
        train_stage1(_config(tiny_project, run, epochs=1, train_features=trained))
        counts = json.loads((run / "run.json").read_text())["parameters"]
        trainable = ids + rest + (tables if trained else 0)
        assert counts == {"ids": ids, "rest": rest, "feature_tables": tables, "trainable": trainable}


# They read each distinct node of a batch once: less work, whose amount the host has to know.
_WAITING = ("mgcn", "smore", "slmrec", "mmgcl", "mmgcn")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("recommender", [name for name in RECOMMENDERS if name not in _WAITING])
def test_nothing_in_an_epoch_waits_for_the_gpu(tiny_project: Project, tmp_path: Path, recommender: str) -> None:
    config = _config(tiny_project, tmp_path, recommender=recommender, device="cuda")
    dataset = Dataset(config.shards)
    world = join_world("cuda")
    objective = make_objective(config, dataset, open_store(config, dataset), world)
    objective.rebuild(world)
    with temporary_session(config, world) as session:
        trainer = make_trainer(config, session, objective, dataset)
        objective.start_epoch(trainer.generator)
        steps = trainer.batches.epoch(0, 0, trainer.generator)
        trainer.train_step(next(steps))  # what is made at first use may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trainer.train_step(next(steps))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        trainer.read_losses()
