"""The demo's folder: what is not its own, or is of another seed, is left alone; its page counts what was packed."""

import shutil
from pathlib import Path

import pytest

from ptmrec_dist.config import DemoConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.demo import demo
from ptmrec_dist.demo_page import RUNS, _summary
from ptmrec_dist.errors import UserError
from tests.conftest import Shop


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no demo; choose another --out"):
        demo(DemoConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_of_another_seed_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"seed": 3}')
    with pytest.raises(UserError, match="holds the demo of seed 3, got seed 4"):
        demo(DemoConfig(out=tmp_path, seed=4))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_the_page_counts_products_and_users_of_the_packed_data(tiny_shop: Shop, tmp_path: Path) -> None:
    for folder in RUNS.values():
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_shop.stage1 / "metrics.json", tmp_path / folder)
    dataset = Dataset(tiny_shop.shards)
    first = _summary(tmp_path, dataset)[0]
    assert f"{dataset.num_items:,} products and {dataset.num_users:,} users" in first
