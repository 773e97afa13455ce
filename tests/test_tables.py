"""The tables are the only registrations: what is added to them from outside works everywhere, without another edit."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch.nn.functional as F
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.config.recommenders import RECOMMENDERS, RecommenderConfig, RecommenderEntry, bounded
from ptmrec_dist.recommenders.base import Batch, Inputs, LinearMap, Queries, Recommender, Tables
from ptmrec_dist.recommenders.layers import embedding_table, modal_maps
from ptmrec_dist.recommenders.losses import bpr_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features, row_gaps, rows_of
from tests.conftest import Project


@dataclass(frozen=True, kw_only=True)
class ToyConfig(RecommenderConfig):
    """Hyper-parameters of the toy."""

    width: int = bounded(3, 1)
    """Width of a toy vector."""


class Toy(Recommender):
    """Matrix factorisation without a penalty."""

    multimodal: ClassVar[bool] = False

    def __init__(self, inputs: Inputs, config: ToyConfig) -> None:
        super().__init__(inputs)
        self.user_embeddings = embedding_table(inputs.num_users, config.width)
        self.item_embeddings = embedding_table(inputs.num_items, config.width)

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        return F.embedding(queries.users, self.user_embeddings.weight)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        return rows_of(self.item_embeddings.weight, chosen)

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        positives_BD, negatives_BD = (self.item_embeddings(items) for items in (batch.positives, batch.negatives))
        return {"bpr": bpr_term(self.user_embeddings(batch.users), positives_BD - negatives_BD)}


class ToyHistory(Recommender):
    """A user is the mean of the recent items, and these are their features: there is no table of users, and no ID."""

    multimodal: ClassVar[bool] = True

    def __init__(self, inputs: Inputs, config: ToyConfig) -> None:
        super().__init__(inputs)
        self.history_length = 4
        self.maps = modal_maps(inputs.features, config.width)

    def tables(self, features: Features) -> Tables:
        return {"vectors": self.cold_items(features)}

    def users(self, queries: Queries, tables: Tables) -> Tensor:
        assert queries.histories is not None
        taken_BL1 = queries.histories.mask[:, :, None]
        vectors_BLD = F.embedding(queries.histories.items, tables["vectors"])
        return (vectors_BLD * taken_BL1).sum(dim=1) / taken_BL1.sum(dim=1).clamp(min=1)

    def items(self, features: Features, tables: Tables, chosen: Tensor | None = None) -> Tensor:
        return rows_of(tables["vectors"], chosen)

    def score(self, users_BD: Tensor, items_CD: Tensor) -> Tensor:
        return F.normalize(users_BD) @ F.normalize(items_CD).T

    def loss(self, batch: Batch, tables: Tables, features: FeatureRows) -> dict[str, Tensor]:
        gaps_BD = row_gaps(tables["vectors"], batch.positives, batch.negatives)
        return {"bpr": bpr_term(self.users(batch.queries, tables), gaps_BD)}

    def cold_map(self) -> dict[str, LinearMap]:
        return {modality: (linear.get_parameter("weight"), None) for modality, linear in self.maps.items()}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECOMMENDERS, "toy", RecommenderEntry(ToyConfig, f"{__name__}:Toy"))
    monkeypatch.setitem(RECOMMENDERS, "toy_history", RecommenderEntry(ToyConfig, f"{__name__}:ToyHistory"))


def test_a_recommender_from_outside_stands_in_help_with_its_own_hyper_parameters(
    toy: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["stage1", "--recommender", "toy", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Width of a toy vector" in shown
    assert "vbpr,freedom,mgcn,smore,toy,toy_history" in shown
    assert "--model.dim" not in shown


def test_a_recommender_from_outside_trains_and_its_run_names_it(
    toy: None, tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--shards", str(tiny_project.shards), "--recommender", "toy", "--model.width", "5", "--epochs", "1"]
    command = ["stage1", *words, "--tracking.enabled", "false", "--device", "cpu", "--out"]
    assert cli.main([*command, str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recommender"] == "toy"
    assert record["hyperparameters"] == {"width": 5}
    assert record["parameters"]["ids"] == 5 * (40 + 60)
    assert cli.main(["evaluate", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert cli.main([*command, str(tmp_path / "wrong"), "--model.width", "0"]) == 2
    assert "model.width: got 0, expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_a_file_of_settings_chooses_whose_hyper_parameters_are_read(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("recommender: smore\nmodel: {image_knn: 4}\n")
    words = ["--shards", "s", "--out", "o", "--config", str(tmp_path / "settings.yaml")]
    command = cli.COMMANDS["stage1"]
    settings = cli.parse(command.settings, words, "ptmrec stage1")
    assert settings.model == RECOMMENDERS["smore"].config(image_knn=4)
    later = cli.parse(command.settings, [*words[:4], "--recommender", "bpr"], "ptmrec stage1")
    assert later.model == RECOMMENDERS["bpr"].config()


def test_no_module_but_the_table_names_a_recommenders_class() -> None:
    """A class is reached through its row alone; `demo`, which shows one recommender, may name its hyper-parameters."""
    package = Path(cli.__file__).parent
    for entry in RECOMMENDERS.values():
        module, name = entry.path.split(":")
        found = subprocess.run(
            ["grep", "-rlwE", f"import .*\\b{name}\\b", package, "--include=*.py"], capture_output=True, text=True
        ).stdout.split()
        assert found == [], f"{name} of {module} is imported by {found}"
