"""Starting from factors: what the factors are, what they become, and for whom they are refused."""

import builtins
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import join_world
from ptmrec_dist.errors import UserError
from ptmrec_dist.training import factors
from ptmrec_dist.training.factors import als_factors
from ptmrec_dist.training.inputs import open_store
from ptmrec_dist.training.stage1 import initial_factors, make_objective, train_stage1
from tests.conftest import UNTRACKED, Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks


def test_factors_of_a_data_set_score_its_pairs_above_others(tiny_project: Project, implicit: Any) -> None:
    dataset = Dataset(tiny_project.shards)
    users, items = als_factors(dataset, 8, seed=0)
    scores, train = users @ items.T, dataset.interactions("train")
    taken = torch.zeros_like(scores, dtype=torch.bool)
    taken[train.users, train.items] = True
    assert scores[taken].mean() > 2 * scores[~taken].mean()
    assert users.square().mean().item() == pytest.approx(items.square().mean().item(), rel=1e-3)
    for table, again in zip((users, items), als_factors(dataset, 8, seed=0), strict=True):
        torch.testing.assert_close(table, again)


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


def _started(config: Stage1Config) -> tuple[int, dict[str, torch.Tensor]]:
    """How often this rank factorised, and the weights that its recommender starts from."""
    world, dataset, computed = join_world("cpu"), Dataset(config.shards), []
    factorisations = factors._factorisations
    factors._factorisations = lambda *inputs: computed.append(inputs) or factorisations(*inputs)  # type: ignore[assignment]
    objective = make_objective(config, dataset, open_store(config, dataset), world)
    take_over = initial_factors(config, dataset)
    assert take_over is not None
    take_over(objective, world)
    factors._factorisations = factorisations
    return len(computed), objective.recommender.state_dict()


@pytest.mark.slow
def test_the_first_of_several_ranks_factorises_for_all(tiny_project: Project, tmp_path: Path, implicit: Any) -> None:
    config = _config(tiny_project, tmp_path / "run", "bpr")
    _, expected = _started(config)
    ranks = run_on_ranks(2, _started, config)
    assert [computed for computed, _ in ranks] == [1, 0]
    for name, weight in expected.items():
        torch.testing.assert_close(torch.tensor(ranks[0][1][name]), weight)
        assert (ranks[0][1][name] == ranks[1][1][name]).all()


def _killed_while_it_factorises(rank: int, arguments: list[str], logs: Path) -> None:
    if os.environ["RANK"] == str(rank):
        factors.sum_over_ranks = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
    command_on_rank("stage1", arguments, logs)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_lost_while_the_first_factorises_ends_the_other(
    tiny_project: Project, tmp_path: Path, implicit: Any, lost: int
) -> None:
    arguments = [
        *(
            "--shards",
            str(tiny_project.shards),
            "--recommender",
            "bpr",
            "--init",
            "als",
            "--out",
            str(tmp_path / "run"),
        ),
        *("--epochs", "1", "--device", "cpu", "--timeout", "30", "--tracking.enabled", "false"),
    ]
    codes = exit_codes_on_ranks(2, _killed_while_it_factorises, lost, arguments, tmp_path)
    assert codes == ([-9, 3] if lost == 0 else [3, -9])
    log = (tmp_path / f"rank{1 - lost}").read_text()
    assert f"rank {1 - lost} lost contact with the other ranks at step 0" in log
    assert "Traceback" not in log
    assert not (tmp_path / "run").exists()


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
