"""The gate between candidate and champion, the way back, and the list of versions; on SQLite and on PostgreSQL."""

import json
import re
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from ptmrec_dist.cli import main
from ptmrec_dist.config import RegisterConfig, Stage1Config, recommender_config
from ptmrec_dist.registry.registering import register
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.records import RECOMMENDER_FILE, write_record
from ptmrec_dist.training.stage1 import train_stage1
from tests.registry.commands import refusal
from tests.registry.films import NUM_ITEMS, NUM_USERS, OFF, Catalogue


@pytest.fixture(scope="package")
def oracle(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID-only run that ranks what each user takes in validation first."""
    folder = tmp_path_factory.mktemp("oracle") / "run"
    common = {"epochs": 0, "device": "cpu", "tracking": OFF, "model": recommender_config("bpr", dim=NUM_ITEMS)}
    train_stage1(Stage1Config(out=folder, shards=catalogue.shards, recommender="bpr", **common))
    run = load_run(folder)
    wanted = run.dataset.interactions("validation")
    users = torch.zeros(NUM_USERS, NUM_ITEMS)
    users[wanted.users, wanted.items] = 1.0
    save_file(
        {"user_embeddings.weight": users, "item_embeddings.weight": torch.eye(NUM_ITEMS)}, folder / RECOMMENDER_FILE
    )
    write_record(folder, run.record)
    return folder


def champion_of(registry: MlflowClient, name: str) -> str:
    return str(registry.get_model_version_by_alias(name, "champion").version)


PROMOTE = ("--metric", "ndcg@10")


def test_a_data_set_to_compare_on_must_be_one_also_where_there_is_no_champion(tmp_path, capsys):
    line = refusal(capsys, "promote", "--name", "unknown", "--on", str(tmp_path))
    assert line.startswith(f"ptmrec promote: error: on: {tmp_path} has no manifest.json; expected a folder that")


def test_better_candidate_becomes_champion_and_a_worse_one_does_not(catalogue, oracle, registry, name, capsys):
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    assert main(["promote", "--name", name, *PROMOTE]) == 0
    assert "no champion to beat" in capsys.readouterr().out
    register(RegisterConfig(run=oracle, name=name))
    line = refusal(capsys, "promote", "--name", name, *PROMOTE, "--gate.max_popularity_lift", "-0.99")
    assert re.search(r"version 2 of .* is not promoted: popularity_lift .* -0.99 or less", line)
    assert champion_of(registry, name) == "1"
    assert main(["promote", "--name", name, *PROMOTE, "--gate.max_group_loss", "1"]) == 0
    before, after = (float(registry.get_model_version(name, number).tags["lists_coverage"]) for number in ("1", "2"))
    assert f"besides accuracy: coverage {before:.3f} -> {after:.3f}, gini " in capsys.readouterr().out
    assert champion_of(registry, name) == "2"
    assert "candidate" not in registry.get_registered_model(name).aliases
    assert re.search(
        r"validation ndcg@10 1\.0000 against the champion's 0\.\d+ over \d+ users",
        registry.get_model_version(name, "2").tags["promoted"],
    )
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    line = refusal(capsys, "promote", "--name", name, *PROMOTE)
    assert re.search(
        r"version 3 of .* is not promoted: .* against the champion's 1\.0000.*expected a p of at most", line
    )
    assert champion_of(registry, name) == "2"
    assert str(registry.get_model_version_by_alias(name, "candidate").version) == "3"


def test_candidate_must_be_better_by_the_margin(catalogue, oracle, registry, name, capsys):
    register(RegisterConfig(run=catalogue.ids_only, name=name, alias="champion"))
    register(RegisterConfig(run=oracle, name=name))
    assert "of a difference of more than 0.99" in refusal(
        capsys, "promote", "--name", name, *PROMOTE, "--margin", "0.99"
    )
    assert champion_of(registry, name) == "1"
    assert main(["promote", "--name", name, *PROMOTE, "--margin", "0.05"]) == 0
    assert champion_of(registry, name) == "2"


def test_candidate_of_other_data_is_refused_with_both_fingerprints(catalogue, registry, name, capsys, monkeypatch):
    register(RegisterConfig(run=catalogue.ids_only, name=name, alias="champion"))
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    registry.set_model_version_tag(name, "1", "data", "0" * 64)
    line = refusal(capsys, "promote", "--name", name)
    assert "0" * 12 in line
    assert load_run(catalogue.ids_only).dataset.fingerprint[:12] in line
    assert champion_of(registry, name) == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "recall@7"), "metric: got 'recall@7', expected one of .* ndcg@20"),
        (("--part", "cold_validation"), "got cold_validation recall@20, expected one of test, validation"),
        (("--max_loss", "1.5"), r"max_loss: got 1.5, expected a fraction in \[0, 1\]"),
        (("--version", "99"), r"version: got '99', expected one of incomparable's: \d+"),
        (("--margin", "-1"), "margin: got -1.0, expected 0 or more"),
        (("--significance", "0"), "significance: got 0.0, expected more than 0"),
        (("--gate.min_coverage", "2"), r"gate.min_coverage: got 2.0, expected a fraction in \[0, 1\]"),
        (("--on", "x", "--gate.max_group_loss", "0.1"), "gate.max_group_loss: got 0.1, expected none with --on"),
    ],
)
def test_what_cannot_be_compared_is_one_line(options, message, catalogue, registered, capsys):
    for alias in ("champion", "candidate"):
        register(RegisterConfig(run=catalogue.ids_only, name="incomparable", alias=alias))
    assert re.search(message, refusal(capsys, "promote", "--name", "incomparable", *options))


def test_rollback_goes_back_champion_by_champion_and_is_noted(catalogue, registry, name, capsys):
    for _ in range(3):
        register(RegisterConfig(run=catalogue.ids_only, name=name, alias="champion"))
    assert json.loads(registry.get_registered_model(name).tags["champions"]) == ["1", "2", "3"]
    for before in ("2", "1"):
        assert main(["rollback", "--name", name]) == 0
        assert champion_of(registry, name) == before
    assert registry.get_model_version(name, "3").tags["rolled_back_to"] == "2"
    assert registry.get_model_version(name, "2").tags["rolled_back_to"] == "1"
    assert "has no champion before 1" in refusal(capsys, "rollback", "--name", name)
    assert champion_of(registry, name) == "1"
    register(RegisterConfig(run=catalogue.ids_only, name=name, alias="champion"))
    assert main(["rollback", "--name", name]) == 0
    assert champion_of(registry, name) == "1"


def test_unknown_names_and_a_missing_candidate_are_one_line(registered, capsys):
    for command in ("promote", "rollback", "models", "delete --version 1"):
        assert re.search(
            r"got 'absent', expected one of .*films", refusal(capsys, *command.split(), "--name", "absent")
        )
    assert "films has no candidate" in refusal(capsys, "promote", "--name", "films")
    assert "ids has no champion before any" in refusal(capsys, "rollback", "--name", "ids")


def test_a_version_that_was_rolled_back_can_be_promoted_again(catalogue, oracle, registry, name, capsys):
    register(RegisterConfig(run=catalogue.ids_only, name=name, alias="champion"))
    register(RegisterConfig(run=oracle, name=name))
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    assert main(["promote", "--name", name, *PROMOTE, "--version", "2"]) == 0
    assert str(registry.get_model_version_by_alias(name, "candidate").version) == "3"  # it was not the one promoted
    assert main(["rollback", "--name", name]) == 0
    assert main(["promote", "--name", name, *PROMOTE, "--version", "2"]) == 0
    assert champion_of(registry, name) == "2"
    assert "version: 2 of" in refusal(capsys, "promote", "--name", name, "--version", "2")
    assert "rolled_back_to" not in registry.get_model_version(name, "2").tags
    assert main(["rollback", "--name", name]) == 0
    assert champion_of(registry, name) == "1"
