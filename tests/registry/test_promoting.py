"""The gate between candidate and champion, the way back, and the list of versions; on SQLite and on PostgreSQL."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file
from scipy import stats

from ptmrec_dist.cli import main
from ptmrec_dist.config import PromoteConfig, RegisterConfig, Stage1Config, recommender_config
from ptmrec_dist.registry.promoting import judge
from ptmrec_dist.registry.registering import register
from ptmrec_dist.training.loaded import load_run
from ptmrec_dist.training.runs import RECOMMENDER_FILE
from ptmrec_dist.training.stage1 import train_stage1
from tests.registry.films import NUM_ITEMS, NUM_USERS, OFF, Shop


@pytest.fixture(scope="package")
def oracle(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID-only run that ranks what each user takes in validation first."""
    folder = tmp_path_factory.mktemp("oracle") / "run"
    common = {"epochs": 0, "device": "cpu", "tracking": OFF, "model": recommender_config("bpr", dim=NUM_ITEMS)}
    train_stage1(Stage1Config(out=folder, shards=shop.shards, recommender="bpr", **common))
    wanted = load_run(folder).dataset.interactions("validation")
    users = torch.zeros(NUM_USERS, NUM_ITEMS)
    users[wanted.users, wanted.items] = 1.0
    save_file({"users.weight": users, "items.weight": torch.eye(NUM_ITEMS)}, folder / RECOMMENDER_FILE)
    return folder


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


def champion_of(registry: MlflowClient, name: str) -> str:
    return str(registry.get_model_version_by_alias(name, "champion").version)


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that a refused command says; its exit code is 2."""
    assert main(list(command)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ptmrec")]
    assert len(lines) == 1
    return lines[0]


PROMOTE = ("--metric", "ndcg@10")


def test_better_candidate_becomes_champion_and_a_worse_one_does_not(shop, oracle, registry, name, capsys):
    register(RegisterConfig(run=shop.ids_only, name=name))
    assert main(["promote", "--name", name, *PROMOTE]) == 0
    assert "no champion to beat" in capsys.readouterr().out
    register(RegisterConfig(run=oracle, name=name))
    assert main(["promote", "--name", name, *PROMOTE]) == 0
    assert champion_of(registry, name) == "2"
    assert "candidate" not in registry.get_registered_model(name).aliases
    assert re.search(
        r"validation ndcg@10 1\.0000 against the champion's 0\.\d+ over \d+ users",
        registry.get_model_version(name, "2").tags["promoted"],
    )
    register(RegisterConfig(run=shop.ids_only, name=name))
    line = refusal(capsys, "promote", "--name", name, *PROMOTE)
    assert re.search(
        r"version 3 of .* is not promoted: .* against the champion's 1\.0000.*expected a p of at most", line
    )
    assert champion_of(registry, name) == "2"
    assert str(registry.get_model_version_by_alias(name, "candidate").version) == "3"


def test_candidate_must_be_better_by_the_margin(shop, oracle, registry, name, capsys):
    register(RegisterConfig(run=shop.ids_only, name=name, alias="champion"))
    register(RegisterConfig(run=oracle, name=name))
    assert "of a difference of more than 0.99" in refusal(
        capsys, "promote", "--name", name, *PROMOTE, "--margin", "0.99"
    )
    assert champion_of(registry, name) == "1"
    assert main(["promote", "--name", name, *PROMOTE, "--margin", "0.05"]) == 0
    assert champion_of(registry, name) == "2"


def test_candidate_of_other_data_is_refused_with_both_fingerprints(shop, registry, name, capsys, monkeypatch):
    register(RegisterConfig(run=shop.ids_only, name=name, alias="champion"))
    register(RegisterConfig(run=shop.ids_only, name=name))
    registry.set_model_version_tag(name, "1", "data", "0" * 64)
    line = refusal(capsys, "promote", "--name", name)
    assert "0" * 12 in line
    assert load_run(shop.ids_only).dataset.fingerprint[:12] in line
    assert champion_of(registry, name) == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "recall@7"), "got validation recall@7, expected one of .* ndcg@20"),
        (("--part", "cold_validation"), "got cold_validation recall@20, expected one of test, validation"),
        (("--margin", "-1"), "margin: got -1.0, expected 0 or more"),
        (("--significance", "0"), "significance: got 0.0, expected more than 0"),
    ],
)
def test_what_cannot_be_compared_is_one_line(options, message, shop, registered, capsys):
    for alias in ("champion", "candidate"):
        register(RegisterConfig(run=shop.ids_only, name="incomparable", alias=alias))
    assert re.search(message, refusal(capsys, "promote", "--name", "incomparable", *options))


def test_rollback_goes_back_champion_by_champion_and_is_noted(shop, registry, name, capsys):
    for _ in range(3):
        register(RegisterConfig(run=shop.ids_only, name=name, alias="champion"))
    assert json.loads(registry.get_registered_model(name).tags["champions"]) == ["1", "2", "3"]
    for before in ("2", "1"):
        assert main(["rollback", "--name", name]) == 0
        assert champion_of(registry, name) == before
    assert registry.get_model_version(name, "3").tags["rolled_back_to"] == "2"
    assert registry.get_model_version(name, "2").tags["rolled_back_to"] == "1"
    assert "has no champion before 1" in refusal(capsys, "rollback", "--name", name)
    assert champion_of(registry, name) == "1"
    register(RegisterConfig(run=shop.ids_only, name=name, alias="champion"))
    assert main(["rollback", "--name", name]) == 0
    assert champion_of(registry, name) == "1"


def test_unknown_names_and_a_missing_candidate_are_one_line(registered, capsys):
    for command in ("promote", "rollback", "models"):
        assert re.search(r"got 'absent', expected one of .*films", refusal(capsys, command, "--name", "absent"))
    assert "films has no candidate" in refusal(capsys, "promote", "--name", "films")
    assert "ids has no champion before any" in refusal(capsys, "rollback", "--name", "ids")


def test_models_lists_versions_with_aliases_and_metrics(shop, registry, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    register(RegisterConfig(run=shop.stage2, name=name, alias="champion"))
    register(RegisterConfig(run=shop.stage2, name=name))
    capsys.readouterr()
    assert main(["models", "--name", name]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    data = load_run(shop.stage2).dataset.fingerprint[:12]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    versions = (("2", "candidate"), ("1", "champion"))
    assert rows == [[name, *version, "vbpr", "2", data, "0.1250", "0.2500"] for version in versions]
    assert main(["models"]) == 0
    assert {"films", "ids"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.2])
def test_verdict_is_that_of_a_paired_t_test_of_the_difference_less_the_margin(shift):
    rng = np.random.default_rng(0)
    theirs = rng.random(80)
    ours = theirs + shift + rng.normal(0, 0.1, 80)
    verdict = judge(ours, theirs, PromoteConfig(name="a", margin=0.01))
    test = stats.ttest_rel(ours, theirs + 0.01)
    assert verdict.passed == (test.statistic > 0 and test.pvalue <= 0.05)
    assert f"p {test.pvalue:.2g} " in verdict.finding


def test_equal_versions_never_pass():
    same = np.linspace(0, 1, 50)
    assert not judge(same, same, PromoteConfig(name="a")).passed
    assert not judge(same[:1] + 1, same[:1], PromoteConfig(name="a")).passed
