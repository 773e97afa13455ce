"""Starting from factors: what the factors are, what they become, and for whom they are refused."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.training.factors import als_factors
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED, Project


def test_factors_of_a_data_set_score_its_pairs_above_others(tiny_project: Project, implicit: Any) -> None:
    dataset = Dataset(tiny_project.shards)
    users, items = als_factors(dataset, 8, seed=0)
    scores, train = users @ items.T, dataset.interactions("train")
    taken = torch.zeros_like(scores, dtype=torch.bool)
    taken[train.users, train.items] = True
    assert scores[taken].mean() > 2 * scores[~taken].mean()
    assert users.square().mean().item() == pytest.approx(items.square().mean().item(), rel=1e-3)
    for factors, again in zip((users, items), als_factors(dataset, 8, seed=0), strict=True):
        torch.testing.assert_close(factors, again)


def _config(project: Project, out: Path, recommender: str) -> Stage1Config:
    common = {"shards": project.shards, "features": project.features, "epochs": 0, "tracking": UNTRACKED}
    return Stage1Config(**common, out=out, recommender=recommender, init="als")


def test_a_run_evaluates_the_factors_as_epoch_0_and_keeps_them(
    tiny_project: Project, tmp_path: Path, implicit: Any
) -> None:
    train_stage1(_config(tiny_project, tmp_path / "run", "bpr"))
    line = yaml.safe_load((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    metrics = yaml.safe_load((tmp_path / "run" / "metrics.json").read_text())
    assert line["epoch"] == 0
    assert metrics["validation"]["recall@20"] == line["validation.recall@20"]


def test_what_cannot_start_from_factors_is_refused_in_one_line_and_writes_nothing(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="init: got 'als', expected none with freedom, which cannot start from factors"):
        train_stage1(_config(tiny_project, tmp_path / "run", "freedom"))
    found = builtins.__import__

    def without(name: str, *others: object) -> object:
        if name.startswith("implicit"):
            raise ImportError(name)
        return found(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"init: als needs the package implicit.*pip install 'ptmrec-dist\[als\]'"):
        train_stage1(_config(tiny_project, tmp_path / "run", "bpr"))
    assert not (tmp_path / "run").exists()
