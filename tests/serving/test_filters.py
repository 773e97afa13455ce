"""Conditions on catalogue columns: from the packed table to the lists of a registered model."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist import cli
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.filters import fulfilling
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.finished_run import load_run
from tests.conftest import Project

TABLE = pl.DataFrame(
    {
        "year": ["1990", "1990.0", "abc", "", "2005"],
        "kind": ["Noir film", "war", "WAR", "", "a=b"],
        "code": ["nan", "NaN", "1_000", "inf", "1000"],
    }
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["year=1990"], [0, 1]),
        (["year!=1990"], [2, 3, 4]),
        (["year>=1990"], [0, 1, 4]),
        (["year > 1990", "kind~b"], [4]),
        (["year<2000"], [0, 1]),
        (["year<=nothing"], [0, 1, 2, 4]),
        (["kind=war"], [1]),
        (["kind!=war"], [0, 2, 3, 4]),
        (["kind~War"], [1, 2]),
        (["kind=a=b"], [4]),
        (["kind~film", "year=2005"], []),
        (["code=nan"], [0]),
        (["code!=nan"], [1, 2, 3, 4]),
        (["code=1_000"], [2]),
        (["code=1000"], [4]),
        (["code<2000"], [4]),
    ],
)
def test_conditions_compare_numbers_as_numbers_and_texts_as_texts(filters: list[str], expected: list[int]) -> None:
    assert np.flatnonzero(fulfilling(filters, TABLE)).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("year", r"\Afilters: got str 'year', expected a column, =, !=, <, <=, >, >= or ~ \(contains\), and a value"),
        ("=3", "expected a column"),
        ("genre=x", r"\Afilters: got the column 'genre', but the model has year, kind, code\Z"),
    ],
)
def test_conditions_that_cannot_be_read_are_one_line(condition: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fulfilling([condition], TABLE)


@pytest.mark.slow
def test_columns_are_packed_and_requests_filter_by_them(tiny_project: Project, tmp_path: Path) -> None:
    items = pl.read_csv(tiny_project.source / "items.csv")
    years = [str(1980 + row) if row % 7 else "" for row in range(items.height)]
    items.with_columns(year=pl.Series(years)).write_csv(tmp_path / "items.csv")
    given = {"items": tmp_path / "items.csv", "images": tiny_project.source, "out": tmp_path / "shards"}
    given |= {"interactions": tiny_project.source / "interactions.csv", "columns.attributes": "year"}
    given |= {"split": "cold_items", "core": 2, "num_shards": 1, "workers": 1}
    assert cli.run("pack", [word for name, value in given.items() for word in (f"--{name}", str(value))]) == 0
    dataset = Dataset(tmp_path / "shards")
    by_id = dict(zip(items["item_id"].to_list(), years))
    assert dataset.attributes["year"].to_list() == [by_id[name] for name in dataset.item_ids]

    run = ["--shards", str(tmp_path / "shards"), "--recommender", "bpr", "--epochs", "1", "--tracking.enabled", "false"]
    assert cli.run("stage1", [*run, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    folder = tmp_path / "served"
    folder.mkdir()
    write_tables(folder, load_run(tmp_path / "run"), [], "exact", {})
    write_digests(folder)
    model = ServedModel(folder)
    whole = model.answer({"user_id": ["u1"]}, top_k=100)["item_id"]
    late = model.answer({"user_id": ["u1"]}, top_k=100, filters=["year>=2010"])["item_id"]
    assert late == [name for name in whole if by_id[name] >= "2010"]
    assert 0 < len(late) < len(whole)
