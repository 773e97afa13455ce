"""Stage 1 continued on other data: rows by id, what is computed anew, lineage, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, FeaturesConfig, PackConfig, Stage1Config, recommender_config
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.distributed import join_world
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.training.continuing import PreviousRun
from ptmrec_dist.training.inputs import open_store, untrained_record
from ptmrec_dist.training.stage1 import make_objective, train_stage1
from tests.conftest import UNTRACKED, Project
from tests.recommenders.conftest import for_few_items

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def changed(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project a day later: an item and two users are gone, two items and a user are new and come first."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(tiny_project.source / "images", folder / "images")
    items = pl.read_csv(tiny_project.source / "items.csv")
    new = items.head(2).with_columns(item_id=pl.Series(["a0", "a1"]), title=pl.lit("new"), text=pl.lit("a new thing"))
    pl.concat([new, items.filter(pl.col("item_id") != "i7")]).write_csv(folder / "items.csv")
    taken = pl.read_csv(tiny_project.source / "interactions.csv")
    rows = [(user, item, 99) for user in ("u0", "u3", "u6") for item in ("a0", "a1")]
    rows += [("a9", item, 99) for item in ("i0", "i3", "i6", "i9", "a0")]
    kept = taken.filter((pl.col("item_id") != "i7") & ~pl.col("user_id").is_in(["u5", "u8"]))
    pl.concat([pl.DataFrame(rows, schema=kept.schema, orient="row"), kept]).write_csv(folder / "interactions.csv")
    pack(
        PackConfig(
            items=folder / "items.csv",
            interactions=folder / "interactions.csv",
            out=folder / "shards",
            core=2,
            workers=1,
            split="leave_one_out",
        )
    )
    encoder = EncoderConfig(model=str(tiny_project.clip))
    extract_features(FeaturesConfig(shards=folder / "shards", out=folder / "features", encoder=encoder))
    return Project(folder, folder / "shards", tiny_project.clip, folder / "features", tiny_project.stage1)


def _config(project: Project, out: Path, recommender: str = "vbpr", **changes: Any) -> Stage1Config:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 64, "device": "cpu", "tracking": UNTRACKED, "lr": 0.02}
    model = recommender_config(recommender, **{"dim": 8, **for_few_items(recommender)})
    settings |= {"shards": project.shards, "features": project.features, "model": model}
    return Stage1Config(out=out, recommender=recommender, **(settings | changes))


def _overlap(old: Dataset, new: Dataset) -> int:
    """How many validation pairs of one are training pairs of the other, by id."""
    pairs = []
    for dataset, part in ((old, "train"), (new, "validation")):
        found = dataset.interactions(part)
        pairs.append({(dataset.user_ids[user], dataset.item_ids[item]) for user, item in zip(found.users, found.items)})
    return len(pairs[0] & pairs[1])


def _rows_by_id(fresh: Tensor, before: Tensor, here: list[str], there: list[str]) -> Tensor:
    """The slow way: one id after the other."""
    expected = fresh.clone()
    for row, name in enumerate(here):
        if name in there:
            expected[row] = before[there.index(name)]
    return expected


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_rows_of_known_ids_are_taken_over_and_new_ones_are_as_initialised(
    tiny_project: Project, changed: Project, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_stage1(_config(tiny_project, tmp_path / "before", name))
    config = _config(changed, tmp_path / "after", name, from_run=tmp_path / "before")
    old, new, world = Dataset(tiny_project.shards), Dataset(changed.shards), join_world("cpu", 60)
    store = open_store(config, new)
    fresh, objective = (make_objective(config, new, store, world) for _ in range(2))
    capsys.readouterr()
    PreviousRun(config, new, untrained_record(config, new, store)).take_over(objective, world)
    printed = capsys.readouterr().out
    assert "users 38 taken over, 1 new, 2 gone; items 59 taken over, 2 new, 1 gone" in printed
    assert f"; warning: {_overlap(old, new)} of 39 validation interactions were trained on before" in printed
    assert (old.num_users, old.num_items, new.num_users, new.num_items) == (40, 60, 39, 61)
    before, expected, found = (
        load_file(tmp_path / "before" / "recommender.safetensors"),
        fresh.weights(),
        objective.weights(),
    )
    for key, value in found.items():
        if key in objective.recommender.rebuilt:
            continue
        rows = value.shape[0] if value.dim() else None
        if rows == new.num_users:
            wanted = _rows_by_id(expected[key], before[key], new.user_ids, old.user_ids)
        elif rows == new.num_items:
            wanted = _rows_by_id(expected[key], before[key], new.item_ids, old.item_ids)
        else:
            wanted = before[key]
        assert torch.equal(value, wanted), key
    if name == "vqrec":  # the same content has the same code, by the quantiser of the run before
        wanted = _rows_by_id(found["codes_IM"], before["codes_IM"], new.item_ids, old.item_ids)
        assert torch.equal(found["codes_IM"], wanted)
        assert found["codes_IM"][new.item_ids.index("a0")].any()
    if name == "lattice":
        assert (found["neighbours"][:, new.interactions("train").items] >= 0).any(dim=2).all()


def test_a_continued_run_is_evaluated_first_and_names_the_run_before(
    tiny_project: Project, changed: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_project.stage1
    words = ["--shards", str(changed.shards), "--features", str(changed.features), "--from", str(before)]
    words += ["--model.dim", "8", "--epochs", "2", "--out", str(tmp_path / "run"), "--tracking.enabled", "false"]
    assert cli.run("stage1", words) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    source = json.loads((before / "run.json").read_text())
    assert record["previous"]["fingerprint"] == source["fingerprint"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert "users 38 taken over, 1 new, 2 gone" in capsys.readouterr().out
    assert cli.run("stage1", words) == 0
    assert "is complete" in capsys.readouterr().out
    other = tmp_path / "other"
    train_stage1(_config(tiny_project, other))
    assert cli.run("stage1", [str(other) if word == str(before) else word for word in words]) == 2
    assert "from_run: got" in capsys.readouterr().err


@pytest.mark.parametrize(("prefix", "warned"), [("films:", True), ("", False)])
def test_data_without_a_common_id_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str, warned: bool
) -> None:
    packed = []
    for name, before in (("old", prefix), ("new", "")):
        rows = [f"{before}u{user},{before}i{(user * 5 + step) % 30}" for user in range(20) for step in range(10)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["user_id,item_id", *rows]))
        packed.append(tmp_path / name)
        pack(PackConfig(interactions=tmp_path / f"{name}.csv", out=packed[-1], core=0, seed=len(packed)))
    words = ["--recommender", "bpr", "--epochs", "1", "--tracking.enabled", "false", "--device", "cpu"]
    runs = [tmp_path / "run", tmp_path / "continued"]
    assert cli.run("stage1", ["--shards", str(packed[0]), "--out", str(runs[0]), *words]) == 0
    assert cli.run("stage1", ["--shards", str(packed[1]), "--from", str(runs[0]), "--out", str(runs[1]), *words]) == 0
    line = (
        "no id is in both data sets, so that no row of users and items is taken over; items are called 'films:i0' there"
    )
    assert (line in capsys.readouterr().out) == warned


def test_trained_feature_tables_are_taken_over_by_id(tiny_project: Project, changed: Project, tmp_path: Path) -> None:
    train_stage1(_config(tiny_project, tmp_path / "before", train_features=True))
    run = tmp_path / "after"
    train_stage1(_config(changed, run, train_features=True, from_run=tmp_path / "before", epochs=0))
    before, after = (load_file(tmp_path / name / "recommender.safetensors") for name in ("before", "after"))
    old, new = Dataset(tiny_project.shards).item_ids, Dataset(changed.shards).item_ids
    for key in ("features.image", "features.text"):
        assert torch.equal(after[key], _rows_by_id(after[key], before[key], new, old))


def test_runs_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_project: Project, changed: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_project.stage1, moved)
    record = json.loads((moved / "run.json").read_text())
    record["data"]["path"], record["data"]["relative"] = str(tmp_path / "nowhere"), {}
    (moved / "run.json").write_text(json.dumps(record))
    cases = {
        ("--recommender", "bpr"): "is a run of vbpr, expected one of bpr",
        ("--model.dim", "4"): "hyper-parameters",
        ("--modalities", "text"): "reads image and text, but this run text; expected features of image and text,",
        ("--from", str(tmp_path / "nothing")): "is not a run folder",
        ("--from", str(moved)): "give it by --from_shards",
        ("--from", str(moved), "--from_shards", str(changed.shards)): "give it by --from_shards",
    }
    words = ["--shards", str(changed.shards), "--features", str(changed.features), "--from", str(tiny_project.stage1)]
    words += ["--model.dim", "8", "--epochs", "1", "--tracking.enabled", "false", "--out", str(tmp_path / "run")]
    for case, message in cases.items():
        given = [word for word in words if case[0] != "--recommender" or not word.startswith(("--model", "8"))]
        assert cli.run("stage1", [*given, *case]) == 2
        captured = capsys.readouterr().err
        assert message in captured
        assert "by --shards" not in captured  # of the new run, where that of the old one is meant
        assert captured.count("\n") == 1
        assert not (tmp_path / "run").exists()
    assert cli.run("stage1", [*words, "--from", str(moved), "--from_shards", str(tiny_project.shards)]) == 0
