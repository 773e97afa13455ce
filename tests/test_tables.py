"""The tables are the only registrations: what is added to them from outside works everywhere, without another edit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ptmrec_dist import cli
from ptmrec_dist.config.recommenders import RECOMMENDERS, RecommenderConfig, RecommenderEntry
from ptmrec_dist.config.table import bounded
from ptmrec_dist.config.tuning import METHODS, MethodEntry, TowersConfig
from ptmrec_dist.encoders.tower import Tower
from ptmrec_dist.encoders.tuning.base import TuningMethod
from ptmrec_dist.recommenders.base import Batch, Inputs, Queries, Recommender, Tables
from ptmrec_dist.recommenders.layers import embedding_table
from ptmrec_dist.recommenders.losses import bpr_term
from ptmrec_dist.recommenders.rows import FeatureRows, Features, rows_of
from tests.conftest import Project
from tests.ranks import run_on_ranks


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


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECOMMENDERS, "toy", RecommenderEntry(ToyConfig, f"{__name__}:Toy"))


def test_a_recommender_from_outside_stands_in_help_with_its_own_hyper_parameters(
    toy: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["stage1", "--recommender", "toy", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Width of a toy vector" in shown
    assert ",".join(RECOMMENDERS) in shown
    assert "--model.dim" not in shown


def test_a_recommender_from_outside_trains_and_its_run_names_it(
    toy: None,
    tiny_project: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.delitem(RECOMMENDERS, "toy")  # as where nothing imports its package
    assert cli.main(["evaluate", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "run: its recommender is 'toy', expected one of bpr, " in capsys.readouterr().err


def test_a_file_of_settings_chooses_whose_hyper_parameters_are_read(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("recommender: smore\nmodel: {image_knn: 4}\n")
    words = ["--shards", "s", "--out", "o", "--config", str(tmp_path / "settings.yaml")]
    command = cli.COMMANDS["stage1"]
    settings = cli.parse(command.settings, words, "ptmrec stage1")
    assert settings.model == RECOMMENDERS["smore"].config(image_knn=4)
    later = cli.parse(command.settings, [*words[:4], "--recommender", "bpr"], "ptmrec stage1")
    assert later.model == RECOMMENDERS["bpr"].config()


@dataclass(frozen=True, kw_only=True)
class GainConfig(TowersConfig):
    """Gains: a trained factor for each channel of the last blocks."""

    blocks: int = bounded(1, 1)
    """Blocks that get gains."""


class Gain(nn.Module):
    """A factor for each channel, 1 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        self._stop_if_asked()
        return tokens_BND * (1 + self.change)

    def _stop_if_asked(self) -> None:
        """Interrupt the run after so many passes, as a scheduler does."""
        left = int(os.environ.get("GAIN_PASSES", "0")) if self.training else 0
        if left:
            os.environ["GAIN_PASSES"] = str(left - 1)
        if left == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Gains(TuningMethod[GainConfig]):
    """Gains behind the last blocks."""

    def attach(self, towers: Mapping[str, Tower], generator: torch.Generator) -> Mapping[str, nn.Module]:
        attached = {}
        for modality, tower in towers.items():
            assert tower.layout is not None
            gains = nn.ModuleList(Gain(tower.layout.width) for _ in range(self.settings.blocks))
            for gain, block in zip(gains, tower.blocks[-self.settings.blocks :], strict=True):
                block.register_forward_hook(lambda block, inputs, output, gain=gain: gain(output))
            attached[modality] = gains
        return attached


GAINS = MethodEntry(GainConfig, f"{__name__}:Gains", 0.03, mergeable=False)


def test_a_tuning_method_from_outside_stands_in_help_with_its_own_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "gain", GAINS)
    for command in ("stage2", "joint", "contrastive"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "Blocks that get gains" in shown
        assert ",".join(METHODS) in shown
        assert ", gain 0.03." in shown
    words = ["--stage1", "a", "--out", "b", "--tuning.method", "gain"]
    settings = cli.parse(cli.COMMANDS["stage2"].settings, [*words, "--gain.blocks", "2"], "ptmrec stage2")
    assert settings.tuning.settings == GainConfig(blocks=2)
    assert settings.encoder_lr == 0.03
    assert cli.main(["stage2", *words, "--gain.blocks", "0"]) == 2
    assert "gain.blocks: got 0, expected 1 or more" in capsys.readouterr().err


def _commands_with_gains(project: Project, folder: Path) -> list[int]:
    """Stage 2 undisturbed, interrupted, and resumed; then features, and the encoder of the contrastive paradigm."""
    METHODS["gain"] = GAINS
    common = ("--tuning.method", "gain", "--batch_size", "12", "--device", "cpu", "--tracking.enabled", "false")
    stage2 = ["--stage1", str(project.stage1), "--epochs", "2", *common, "--gain.blocks", "2", "--out"]
    codes = [cli.run("stage2", [*stage2, str(folder / "whole")])]
    os.environ["GAIN_PASSES"] = "7"
    codes.append(cli.run("stage2", [*stage2, str(folder / "broken")]))
    assert (folder / "broken" / "checkpoints").is_dir()
    codes.append(cli.run("stage2", [*stage2, str(folder / "broken")]))
    codes.append(cli.run("evaluate", ["--run", str(folder / "broken"), "--device", "cpu"]))
    pairs = ["--shards", str(project.shards), "--encoder.model", str(project.clip), "--epochs", "1", *common]
    codes.append(cli.run("contrastive", [*pairs, "--out", str(folder / "encoder")]))
    words = ["--shards", str(project.shards), "--encoder.model", str(folder / "encoder"), "--device", "cpu"]
    codes.append(cli.run("features", [*words, "--out", str(folder / "features")]))
    return codes


@pytest.mark.slow
def test_a_tuning_method_from_outside_trains_resumes_and_is_read_back(tiny_project: Project, tmp_path: Path) -> None:
    assert run_on_ranks(1, _commands_with_gains, tiny_project, tmp_path) == [[0] * 6]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert (broken / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    expected, found = (load_file(run / "encoder.safetensors") for run in (whole, broken))
    assert found.keys() == expected.keys()
    assert all(value.any() and torch.equal(value, expected[name]) for name, value in found.items())
    record = json.loads((broken / "run.json").read_text())
    assert record["parameters"]["encoder"] == 2 * 32 + 2 * 24
    assert {"towers: both", "blocks: 2"} <= {line.strip() for line in (broken / "config.yaml").read_text().splitlines()}
    assert (tmp_path / "encoder" / "tuned.safetensors").is_file()


_WITH_A_METRIC = """
import sys
from ptmrec_dist.evaluation import metrics
metrics.METRICS["miss"] = metrics.Metric("Miss", lambda found, k: 1 - metrics.recall(found, k))
metrics.SELECT, metrics.SHOWN = "miss@20", ("recall@20", "miss@10")
from ptmrec_dist import cli
shards, features, folder = sys.argv[1:]
for command in ("stage1", "evaluate", "report", "promote"):
    try:
        cli.main([command, "--help"])
    except SystemExit:
        pass
common = ["--tracking.enabled", "false", "--device", "cpu", "--epochs", "4", "--lr", "0.1"]
words = ["--shards", shards, "--features", features, "--out", folder + "/run", *common]
assert cli.main(["stage1", *words]) == 0
assert cli.main(["report", "--runs", folder + "/run", "--out", folder + "/page.html"]) == 0
"""


@pytest.mark.slow
def test_a_metric_from_outside_stands_in_help_is_computed_selects_and_is_shown(
    tiny_project: Project, tmp_path: Path
) -> None:
    words = [str(tiny_project.shards), str(tiny_project.features), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", _WITH_A_METRIC, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert shown.count("Metrics: recall, ndcg, hr, mrr, precision, map, miss, each at 10, 20 and 50") == 4
    assert shown.count("selected by miss@20; tables show recall@20, miss@10.") == 4
    test = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert test["miss@20"] == pytest.approx(1 - test["recall@20"], abs=1e-9)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    worst = min(history, key=lambda line: line["validation.recall@20"])
    assert worst["validation.recall@20"] < max(line["validation.recall@20"] for line in history)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["kept_epoch"] == worst["epoch"]
    page = (tmp_path / "page.html").read_text()
    assert "miss@10" in page
    assert "Miss@20" in page


def test_no_module_but_the_tables_names_the_class_of_a_row() -> None:
    """A class is reached through its row alone; `demo`, which shows one recommender, may name its hyper-parameters."""
    package = Path(cli.__file__).parent
    for entry in (*RECOMMENDERS.values(), *METHODS.values()):
        module, name = entry.path.split(":")
        found = subprocess.run(
            ["grep", "-rlwE", f"import .*\\b{name}\\b", package, "--include=*.py"], capture_output=True, text=True
        ).stdout.split()
        assert found == [], f"{name} of {module} is imported by {found}"
