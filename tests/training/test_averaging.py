"""The average of the weights of epochs: its value, and that what is evaluated and kept is it while training is not changed."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ptmrec_dist.config import Stage1Config
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.distributed import join_world
from ptmrec_dist.training.averaging import TAIL, EpochAverage
from ptmrec_dist.training.inputs import open_store
from ptmrec_dist.training.ranking_evaluation import RankingEvaluation
from ptmrec_dist.training.records import RECOMMENDER_FILE
from ptmrec_dist.training.stage1 import make_objective, make_trainer
from tests.conftest import Project
from tests.training.steps import temporary_session


def _weighted_sum(values: list[torch.Tensor]) -> torch.Tensor:
    """Section 4 of Shamir and Zhang, written out: every epoch's own share, and what later ones leave of it."""
    total = torch.zeros_like(values[0])
    for number, value in enumerate(values, 1):
        share = (TAIL + 1) / (number + TAIL)
        for later in range(number + 1, len(values) + 1):
            share *= 1 - (TAIL + 1) / (later + TAIL)
        total += share * value
    return total


def test_each_epoch_has_its_share_and_the_parameters_keep_their_values() -> None:
    values = list(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
    parameter, frozen = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4), requires_grad=False)
    average = EpochAverage({"moved": parameter, "frozen": frozen, "buffer": torch.zeros(4)})
    for value in values:
        with torch.no_grad():
            parameter.copy_(value)
        average.add()
    with average.in_place():
        torch.testing.assert_close(parameter.detach(), _weighted_sum(values))
    assert torch.equal(parameter.detach(), values[-1])
    assert set(average.state()) == {"moved.average", "average.epochs"}


def test_the_average_is_kept_and_training_is_the_same(tiny_project: Project, tmp_path: Path) -> None:
    kept, trained = {}, {}
    for averages in (True, False):
        epochs: list[dict[str, torch.Tensor]] = []
        settings = {"shards": tiny_project.shards, "features": tiny_project.features, "recommender": "vbpr"}
        config = Stage1Config(**settings, out=tmp_path, epochs=4, batch_size=100, average=averages)  # type: ignore[arg-type]
        dataset, world = Dataset(config.shards), join_world("cpu")
        objective = make_objective(config, dataset, open_store(config, dataset), world)
        with temporary_session(config, world) as session:
            evaluation = RankingEvaluation(config, session, objective, dataset)
            trainer: Any = make_trainer(config, session, objective, dataset, evaluation)
            for _ in range(config.epochs):
                trainer.train_epoch()
                trainer.state.epoch, trainer.state.step = trainer.state.epoch + 1, 0
                trainer.evaluate()
                moved = {
                    name: value for name, value in objective.recommender.named_parameters() if "projections" not in name
                }
                epochs.append({name: value.detach().clone() for name, value in moved.items()})  # those are fitted
            evaluation.keep()
            kept[averages] = load_file(session.run.folder / RECOMMENDER_FILE)
        trained[averages] = epochs
    for name, value in trained[True][-1].items():
        assert torch.equal(value, trained[False][-1][name]), name
        assert torch.equal(kept[False][name], value), name
    name = "user_embeddings.weight"
    torch.testing.assert_close(kept[True][name], _weighted_sum([epoch[name] for epoch in trained[True]]))
    assert not torch.equal(kept[True][name], kept[False][name])
