"""Experiments over several splits, encoders and refits: the plan's numbers add up, tests and intervals are over splits."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, ExperimentConfig
from ptmrec_dist.data.manifest import Manifest
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.plan import lay_out
from ptmrec_dist.experiment.run import run_experiment
from ptmrec_dist.lock import locked
from tests.conftest import UNTRACKED, Project
from tests.ranks import run_on_ranks

RANK2 = {"tuning": {"method": "lora"}, "lora": {"rank": 2}, "optim": {"encoder_lr": 0.3}}
SEPARATE = EncoderConfig(image="timm:resnet18", text="hf:some/model")
TEXTS = EncoderConfig(text="hf:some/model")


def _config(project: Project, out: Path, **changes: Any) -> ExperimentConfig:
    tables = {name: str(project.source / f"{name}.csv") for name in ("items", "interactions")}
    settings: dict[str, Any] = {
        "pack": {**tables, "split": "cold_items", "core": 2, "num_shards": 4, "workers": 1},
        "splits": (0, 1),
        "encoder": EncoderConfig(model=str(project.clip)),
        "out": out,
        "paradigms": ("frozen", "two_stage_refit"),
        "methods": ("rank2",),
        "variants": {"rank2": RANK2},
        "seeds": (0,),
        "stage1": {"epochs": 2, "batch_size": 64, "model": {"dim": 8}},
        "tuned": {"epochs": 1, "batch_size": 24},
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return ExperimentConfig(**(settings | changes))


def test_a_recommender_of_both_modalities_is_left_out_where_one_is_read(tiny_project: Project, tmp_path: Path) -> None:
    axes = {"recommenders": ("mgcn", "vbpr"), "paradigms": ("frozen",), "modalities": ("both", "text")}
    both = lay_out(_config(tiny_project, tmp_path, **axes))
    assert [cell.modalities for cell in both.cells if cell.recommender == "mgcn"] == ["both"] * (len(both.cells) // 3)
    assert set(both.grid.left_out) == {"mgcn needs image and text"}
    texts = axes | {"encoder": EncoderConfig(text="hf:anything"), "recommenders": ("mgcn",)}
    with pytest.raises(
        UserError, match="recommenders: got no combination that can be trained: mgcn needs image and text"
    ):
        lay_out(_config(tiny_project, tmp_path, **texts))


def test_every_combination_is_a_cell_or_repeats_one_or_is_left_out_for_a_reason(
    tiny_project: Project, tmp_path: Path
) -> None:
    config = _config(
        tiny_project,
        tmp_path,
        encoder=None,
        encoders={"clip": EncoderConfig(model="ViT-B-32"), "pair": SEPARATE, "texts": TEXTS},
        recommenders=("vbpr", "lightgcn"),
        modalities=("both", "image"),
        paradigms=("frozen", "two_stage", "two_stage_refit", "joint_refit", "contrastive"),
        methods=("none", "rank2"),
        seeds=(0, 1),
    )
    plan = lay_out(config)
    # Of a split and a seed. VBPR reads both, or images alone where the encoder has some: frozen, two_stage (none, rank2),
    # two refits (rank2), contrastive (rank2; with separate encoders also none). LightGCN is trained once.
    clip, pair, texts = 2 * (1 + 2 + 2 + 1), 2 * (1 + 2 + 2 + 2), 1 + 2 + 2
    assert len(plan.cells) == len(set(plan.cells)) == 2 * 2 * (clip + pair + texts + 1)
    assert plan.grid.combinations == 2 * 3 * 2 * 2 * 5 * 2 * 2
    refits, ids, images = 2 * 2 + 2 * 2 + 2, 3 * 2 * 4 * 2, 5 * 2
    pairs = 2 + 2  # two modalities of clip without tuning; texts alone
    assert plan.grid.left_out.total() == 2 * 2 * (refits + ids + images + pairs)
    frozen, of_lightgcn = 2 + 2 + 1, 3 * 2 * 2 - 1
    assert plan.grid.repeated == 2 * 2 * (frozen + of_lightgcn)
    by_command = [step.command for step in plan.steps.values()]
    assert by_command.count("pack") == 2
    assert by_command.count("joint") == 2 * 2 * (2 + 2 + 1)  # every refit has the run that it reads
    seen: set[str] = set()
    for name, step in plan.steps.items():
        assert seen.issuperset(step.needs), name
        seen.add(name)
    assert len({step.folder for step in plan.steps.values()}) == len(plan.steps)


@pytest.fixture(scope="module")
def finished(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    run_on_ranks(1, int)  # the server that processes are forked from
    config = _config(tiny_project, tmp_path_factory.mktemp("splits") / "experiment")
    run_experiment(config)
    return config


def _values(config: ExperimentConfig, paradigm: str, part: str, metric: str) -> np.ndarray:
    runs = [config.out / "runs" / f"split{split}-vbpr-both-{paradigm}-seed0" for split in config.splits]
    return np.array([json.loads((run / "metrics.json").read_text())[part][metric] for run in runs])


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_paradigms_have_the_names_of_the_paper_on_large_encoders(tiny_project: Project, tmp_path: Path) -> None:
    own, paper = (
        _config(tiny_project, tmp_path, paradigms=paradigms, methods=("full",), baseline=paradigms[0])
        for paradigms in (("frozen", "contrastive", "joint"), ("pt", "ft", "ete"))
    )
    assert lay_out(paper).cells == lay_out(own).cells
    assert paper.baseline_paradigm == own.baseline_paradigm == "frozen"
    control = _config(tiny_project, tmp_path, paradigms=("ete", "ete_frozen"), methods=("full", "lora"), baseline="ete")
    assert {(cell.paradigm, cell.method) for cell in lay_out(control).cells} == {
        ("joint", "full"),
        ("joint", "lora"),
        ("joint", "none"),
    }


def test_differences_have_intervals_over_splits_and_tables_say_so(finished: ExperimentConfig) -> None:
    manifests = [Manifest.read(finished.out / "shards" / f"split{split}") for split in finished.splits]
    assert [made.seed for made in manifests] == [0, 1]
    assert manifests[0].fingerprint != manifests[1].fingerprint
    tables = [(finished.out / "features" / f"split{split}" / "image.npy").read_bytes() for split in finished.splits]
    assert tables[0] == tables[1]
    log = (finished.out / "logs" / "features-split1.log").read_text()
    assert "reused" in log  # computed for the first split alone
    for part in ("test", "cold_test"):
        ours, base = (_values(finished, name, part, "recall@20") for name in ("two_stage_refit-rank2", "frozen"))
        (row,) = (
            row for row in _rows(finished.out / "tables" / f"significance_{part}.csv") if row["metric"] == "recall@20"
        )
        assert (row["paradigm"], row["method"]) == ("two_stage_refit", "rank2")
        assert row["difference"] == f"{np.mean(ours - base):+.4f}"
        if ours[0] - base[0] != pytest.approx(ours[1] - base[1], abs=1e-12):
            expected = stats.ttest_rel(ours, base)
            low, high = expected.confidence_interval(0.95)
            assert (row["low"], row["high"]) == (f"{low:+.4f}", f"{high:+.4f}")
            assert float(row["t_test_splits"]) >= float(f"{expected.pvalue:.3g}")
        frozen, refit = _rows(finished.out / "tables" / f"accuracy_{part}.csv")
        assert refit["recall@20"] == f"{ours.mean():.4f} ± {ours.std(ddof=1):.4f}"
        assert refit["change of Recall@20"].startswith(f"{100 * (ours - base).mean() / base.mean():+.1f}")
        assert frozen["change of Recall@20"] == ""
        for ending in ("md", "tex"):
            shown = (finished.out / "tables" / f"accuracy_{part}.{ending}").read_text()
            assert "confidence interval over the 2 splits" in shown
            assert "One split" not in shown
    page = (finished.out / "report.html").read_text()
    assert "2 settings, 2 splits, 1 seed each" in page
    assert "confidence interval over the 2 splits" in page


@pytest.mark.slow
def test_users_of_several_splits_are_matched_by_their_ids(tiny_project: Project, finished: ExperimentConfig) -> None:
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.evaluation.ranking import metrics_of
    from ptmrec_dist.experiment.finished import read_seed_run

    users: dict[str, dict[str, list[float]]] = {}
    for split in finished.splits:
        ids = Dataset(finished.out / "shards" / f"split{split}").user_ids
        for name in ("frozen", "two_stage_refit-rank2"):
            run = read_seed_run(finished.out / "runs" / f"split{split}-vbpr-both-{name}-seed0")
            found = metrics_of(run.ranked["cold_test"])
            for user, value in zip(found.users, found.values["ndcg@20"], strict=True):
                users.setdefault(ids[user], {}).setdefault(name, []).append(value)
    gaps = [np.mean(of["two_stage_refit-rank2"]) - np.mean(of["frozen"]) for of in users.values()]
    (row,) = (
        row for row in _rows(finished.out / "tables" / "significance_cold_test.csv") if row["metric"] == "ndcg@20"
    )
    assert float(row["t_test_users"]) >= float(f"{stats.ttest_1samp(gaps, 0).pvalue:.3g}")


@pytest.mark.slow
def test_a_grid_that_grows_runs_only_what_is_new(finished: ExperimentConfig) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.out.glob("*/*/metrics.json")}
    grown = replace(finished, paradigms=(*finished.paradigms, "two_stage"), phase="validation")
    run_experiment(grown)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    rows = _rows(finished.out / "tables" / "accuracy_validation.csv")
    assert [row["paradigm"] for row in rows] == ["frozen", "two_stage_refit", "two_stage"]
    values = _values(finished, "two_stage-rank2", "validation", "ndcg@20")
    assert rows[2]["ndcg@20"] == f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
    assert "NDCG@20 on validation" in (finished.out / "report.html").read_text()
    assert "on test" not in (finished.out / "report.html").read_text()


@pytest.mark.slow
def test_the_same_runs_are_compared_in_another_way_beside_the_first(finished: ExperimentConfig, tmp_path: Path) -> None:
    before = (finished.out / "tables/accuracy_test.csv").read_bytes()
    run_experiment(replace(finished, baseline="best", results=tmp_path / "best"))
    assert "the best row of the recommender" in (tmp_path / "best/tables/accuracy_test.md").read_text()
    assert (tmp_path / "best/report.html").is_file()
    assert (finished.out / "tables/accuracy_test.csv").read_bytes() == before


def _command(config: ExperimentConfig, **changes: Any) -> dict[str, Any]:
    return {
        "pack": config.pack,
        "splits": list(config.splits),
        "encoder": {"model": config.encoder.model if config.encoder else None},
        "out": str(config.out),
        "methods": ["rank2"],
        "variants": {"rank2": RANK2},
        "tracking": {"enabled": False},
        **changes,
    }


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _command(_config(tiny_project, tmp_path / "out"), seeds=[0], paradigms=["frozen", "two_stage_refit"])
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert cli.run("experiment", ["--config", str(tmp_path / "experiment.yaml"), "--dry_run", "true"]) == 0
    printed = capsys.readouterr().out
    assert "4 combinations of splits" in printed
    assert "4 runs to compare, 0 that repeat one of them, 0 left out" in printed
    assert "10 steps, 0 finished" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_settings_that_no_run_reads_are_named(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tiny_project, tmp_path / "out", dry_run=True)
    run_experiment(config)
    assert "none of these runs reads" not in capsys.readouterr().out
    other = {"tuning": {"method": "prompt"}}
    given: dict[str, Any] = {
        "tuned": {**config.tuned, "lora": {"rank": 3}, "prompt": {"length": 3}},
        "joint": {"epochs": 9},
    }
    run_experiment(replace(config, **given, variants=config.variants | {"other": other}))
    named = "settings that none of these runs reads: joint, tuned.prompt, variants.other\n"
    assert capsys.readouterr().out.endswith(named)


@pytest.mark.parametrize("name", ["items", "interactions", "images"])
def test_files_to_pack_that_are_not_there_are_refused_before_anything_runs(
    tiny_project: Project, tmp_path: Path, name: str
) -> None:
    config = _config(tiny_project, tmp_path / "out")
    gone, kind = tmp_path / "gone", "folder" if name == "images" else "file"
    with pytest.raises(UserError, match=f"pack.{name}: got {gone}, expected an existing {kind}"):
        run_experiment(replace(config, pack=config.pack | {name: str(gone)}, dry_run=True))
    assert not config.out.exists()


def test_a_dry_run_beside_the_experiment_is_not_refused(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(_config(tiny_project, tmp_path / "out"), dry_run=True)
    with locked(config.out):
        run_experiment(config)
    assert "10 steps, 0 finished" in capsys.readouterr().out


@pytest.mark.parametrize("start", ["run", "scratch"])
def test_a_model_trains_its_recommender_with_settings_of_its_own(
    tiny_project: Project, tmp_path: Path, start: str
) -> None:
    models = {"wide": {"recommender": "vbpr", "lr": 0.5, "model": {"dim": 7}}}
    paradigms = ("frozen", "two_stage", "joint", "two_stage_refit")
    plain = _config(
        tiny_project, tmp_path / "out", seeds=(0,), splits=(0,), paradigms=paradigms, refit={"start": start}
    )
    steps = lay_out(replace(plain, recommenders=("vbpr", "wide"), models=models, stage1={"lr": 0.1, "epochs": 3})).steps
    own = {name: step for name, step in steps.items() if "-wide-" in f"-{name}-"}
    assert {step.command for step in own.values()} == {"stage1", "stage2", "joint", "refit"}
    for name, step in own.items():
        twin, settings = steps[name.replace("wide", "vbpr")].settings, step.settings
        expected = {"recommender": "vbpr", "lr": 0.5, "model": {"dim": 7}, "epochs": 3}
        chosen = {
            "stage1": set(expected),
            "refit": {"model", "epochs"}
            | ({"lr"} if start == "scratch" else set()),  # from the run: a third of stage 1's
            "joint": {"recommender", "model"},
            "stage2": set(),
        }
        for key in expected:
            value = expected[key] if key in chosen[step.command] else twin.get(key)
            assert settings.get(key) == value, (name, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": "somewhere"}, "shards: got somewhere, expected either --shards or --pack.interactions"),
        ({"shards": "somewhere", "pack": {"split": "random"}}, "splits: got [0, 1], expected none with --shards"),
        ({"pack": {"seed": 3, "interactions": "i.csv"}}, "pack.seed: got 3, expected none"),
        ({"pack": {"interactions": "i.csv", "split": "leave_one_out"}}, "splits: got [0, 1], expected one"),
        ({"pack": {"interactions": "i.csv", "spilt": "random"}}, "pack: "),
        ({"encoders": {"a": {"model": "x"}}}, "encoder: "),
        ({"encoder": None, "encoders": {"a/b": {"model": "x"}}}, "encoders: got 'a/b', expected names of letters"),
        ({"variants": {"rank2": {"lora": {"rank": 2}}}}, "variants.rank2.tuning.method: got none, expected one of"),
        ({"variants": {"lora": RANK2}, "methods": ["lora"]}, "variants: got 'lora', expected a name that is not"),
        ({"variants": {"rank2": {**RANK2, "lora": {"rank": 0}}}}, "lora.rank: got 0, expected 1 or more"),
        (
            {"variants": {"rank2": {**RANK2, "prompt": {"length": 3}}}},
            "variants.rank2.prompt: got {'length': 3}, expected none: the tuning method of this variant is lora",
        ),
        ({"pack": {"interactions": "nowhere.csv"}}, "pack.interactions: got nowhere.csv, expected an existing file"),
        ({"models": {"wide": {"dim": 3}}}, "models.wide.recommender: got none, expected one of bpr"),
        ({"models": {"vbpr": {"recommender": "vbpr"}}}, "models: got 'vbpr', expected a name that is not"),
        ({"models": {"a b": {"recommender": "vbpr"}}}, "models: got 'a b', expected names of letters"),
        (
            {"recommenders": ["wide"], "models": {"wide": {"recommender": "vbpr", "model": {"dim": 0}}}},
            "model.dim: got 0, expected 1 or more",
        ),
        ({"refit": {"epochs": "many"}, "paradigms": ["frozen", "two_stage_refit"]}, "refit: "),
        ({"baseline": "joint"}, "baseline: got 'joint', expected one of frozen"),
        ({"baseline_encoder": "clip"}, "baseline_encoder: got 'clip', expected one of several --encoders"),
        ({"splits": [0, 0]}, "splits: got [0, 0], expected each only once"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_packed(
    tiny_project: Project, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _command(_config(tiny_project, tmp_path / "out"), **changes)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert cli.run("experiment", ["--config", str(tmp_path / "experiment.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_tables_that_changed_since_are_refused(
    tiny_project: Project, finished: ExperimentConfig, tmp_path: Path
) -> None:
    for name in ("items", "interactions"):
        changed = tmp_path / f"{name}.csv"
        changed.write_text((tiny_project.source / f"{name}.csv").read_text() + "\n")
        other = replace(finished, pack=finished.pack | {name: str(changed)})
        with pytest.raises(
            UserError, match=rf"pack\.{name}: got [0-9a-f]{{12}}, but .* was started with [0-9a-f]{{12}}"
        ):
            run_experiment(other)


def test_arrays_that_changed_since_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    array = tmp_path / "image.npy"
    np.save(array, np.load(tiny_project.features / "image.npy"))
    own = {"encoder": None, "features": {"image_npy": str(array)}, "paradigms": ("frozen",), "splits": (0,)}
    config = _config(tiny_project, tmp_path / "out", **own, stage1={"epochs": 1, "batch_size": 64})
    run_experiment(config)
    np.save(array, 1 - np.load(array))
    with pytest.raises(UserError, match=r"features\.image_npy: got [0-9a-f]{12}, but .* was started with"):
        run_experiment(config)
