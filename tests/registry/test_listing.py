"""`ptmrec models` and `ptmrec delete`: what is registered is shown whole, wherever it is read, and can be taken out."""

import json
import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
from mlflow import MlflowClient

from ptmrec_dist.cli import main
from ptmrec_dist.config import RegisterConfig, SweepConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import Owner
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.registering import register
from ptmrec_dist.registry.versions import all_versions
from ptmrec_dist.training.finished_run import load_run
from tests.registry.commands import refusal
from tests.registry.films import Catalogue


@pytest.fixture(scope="module")
def data(catalogue: Catalogue) -> str:
    return load_run(catalogue.stage2).dataset.fingerprint


def test_in_a_pipe_values_are_whole_and_separated_by_tabs(catalogue, data, registry, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    register(RegisterConfig(run=catalogue.stage2, name=name, alias="champion"))
    register(RegisterConfig(run=catalogue.stage2, name=name))
    capsys.readouterr()
    assert main(["models", "--name", name]) == 0
    headings, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    lineage = ["recommender", "stage", "data"]
    assert headings == ["model", "version", "aliases", *lineage, "validation recall@20", "test recall@20"]
    versions = (("2", "candidate"), ("1", "champion"))
    assert rows == [[name, *version, "vbpr", "2", data[:12], "0.2500", "0.1250"] for version in versions]
    assert main(["models"]) == 0
    listed = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"films", "ids", name} <= set(listed)


def test_json_holds_everything(catalogue, data, registry, name, capsys):
    register(RegisterConfig(run=catalogue.stage2, name=name))
    capsys.readouterr()
    assert main(["models", "--name", name, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["version"], found["aliases"]) == (name, 1, ["candidate"])
    assert found["data"] == data
    assert found["metrics"] == {"validation": {"recall@20": 0.25}, "test": {"recall@20": 0.125}}
    assert found["tags"]["run"] == load_run(catalogue.stage2).record.fingerprint


@pytest.mark.parametrize("width", [40, 80, 200])
def test_on_a_terminal_of_any_width_no_value_is_cut(catalogue, data, registered, width, capsys, monkeypatch):
    long = "a-name-with-a-name-that-is-longer-than-forty-characters"
    register(RegisterConfig(run=catalogue.stage2, name=long))
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["models", "--name", long]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert width < 200 or max(map(len, shown.splitlines())) > 80  # a table, where it fits
    for value in (long, "candidate", "vbpr", data[:12], "0.2500", "0.1250"):
        assert value in shown


def test_more_models_than_a_page_of_mlflow_holds_are_all_listed(empty_registry, catalogue, capsys):
    for number in range(101):
        empty_registry.create_registered_model(f"model-{number:03d}")
    register(RegisterConfig(run=catalogue.ids_only, name="zebra"))
    capsys.readouterr()
    assert main(["models"]) == 0
    assert "zebra\t1\tcandidate" in capsys.readouterr().out
    assert "zebra" in refusal(capsys, "models", "--name", "absent")


def test_an_unknown_metric_is_refused_with_those_known(registered, capsys):
    for command in (("models",), ("promote", "--name", "ids")):
        line = refusal(capsys, *command, "--metric", "xyz")
        assert "metric: got 'xyz', expected one of recall@10, recall@20, recall@50, ndcg@10" in line


@pytest.mark.parametrize("odd", ["it's", 'say "hi"', "both ' and \"", "a' OR name != '", "a;b -- c", "100 %"])
def test_names_with_quotes_work_with_every_command_and_break_none(odd, catalogue, registry, capsys):
    register(RegisterConfig(run=catalogue.ids_only, name=odd, alias="champion"))
    register(RegisterConfig(run=catalogue.ids_only, name=odd, alias="champion"))
    capsys.readouterr()
    assert main(["models"]) == 0
    assert f"{odd}\t2\tchampion" in capsys.readouterr().out
    assert main(["rollback", "--name", odd]) == 0
    assert main(["delete", "--name", odd, "--version", "2"]) == 0
    assert main(["recommend", "--model", f"models:/{odd}@champion", "--users", "1"]) == 0
    assert main(["delete", "--name", odd, "--version", "1", "--force"]) == 0


@pytest.mark.parametrize("bad", ["a/b", "a:b", "a?b", "a@b", "", " ", "a ", "..", "a\nb", "a" * 257])
def test_a_name_that_no_model_can_have_is_refused_at_once_also_by_a_sweep(bad, tmp_path):
    with pytest.raises(UserError, match=r"name: got .* expected 1 to 256 printable characters without"):
        RegisterConfig(run=tmp_path, name=bad)
    with pytest.raises(UserError, match="name: got "):
        SweepConfig(stage1=tmp_path, out=tmp_path, space={"kt_weight": {"choice": [0]}}, name=bad)


def _uploads(registry):
    experiments = [one.experiment_id for one in registry.search_experiments()]
    return [one.model_id for one in registry.search_logged_models(experiments)]


def test_deletion_keeps_the_files_of_a_version_that_was_copied(catalogue, registry, name):
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    registry.copy_model_version(f"models:/{name}/1", f"{name} copied")
    assert main(["delete", "--name", name, "--version", "1"]) == 0
    assert load_model(f"models:/{name} copied/1").predict(pd.DataFrame({"user_id": ["1"]})).shape[0] == 10
    before = len(_uploads(registry))
    assert main(["delete", "--name", f"{name} copied", "--version", "1"]) == 0
    assert len(_uploads(registry)) == before - 1


def test_what_a_killed_registration_left_is_completed_or_removed_by_the_next(catalogue, registry, name, monkeypatch):
    """Its process has ended: after the upload, or before the alias was set."""
    gone = replace(Owner.this_process(), started="0 0")
    before = len(_uploads(registry))
    for step in ("create_model_version", "set_registered_model_alias"):
        with monkeypatch.context() as patch:
            patch.setattr(Owner, "this_process", lambda: gone)
            patch.setattr(MlflowClient, step, lambda *_, **__: sys.exit())
            with pytest.raises(SystemExit):
                register(RegisterConfig(run=catalogue.ids_only, name=name))
    assert len(_uploads(registry)) == before + 1
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    assert len(_uploads(registry)) == before + 1
    assert [str(version.version) for version in all_versions(registry, name)] == ["1"]
    assert load_model(f"models:/{name}@candidate").predict(pd.DataFrame({"user_id": ["1"]})).shape[0] == 10
    register(RegisterConfig(run=catalogue.ids_only, name=name))
    assert str(registry.get_model_version_by_alias(name, "candidate").version) == "2"


def test_deletion_lists_what_was_removed_and_protects_the_champion(catalogue, registry, name, capsys):
    for alias in ("champion", "champion", "candidate"):
        register(RegisterConfig(run=catalogue.ids_only, name=name, alias=alias))
    capsys.readouterr()
    assert "version: 2 is the champion of" in refusal(capsys, "delete", "--name", name, "--version", "2")
    assert "expected one of" in refusal(capsys, "delete", "--name", name, "--version", "9")
    model = re.findall(r"m-[0-9a-f]{32}", registry.get_model_version_download_uri(name, "3"))[0]
    assert model in _uploads(registry)
    assert main(["delete", "--name", name, "--version", "3"]) == 0
    assert f"deleted version 3 of {name}, its alias candidate;" in capsys.readouterr().out
    assert list(registry.get_registered_model(name).aliases) == ["champion"]
    assert model not in _uploads(registry)
    assert main(["delete", "--name", name, "--version", "2", "--force"]) == 0
    assert "its alias champion" in capsys.readouterr().out
    assert main(["rollback", "--name", name]) == 0
    assert "is version 1 again, was deleted" in capsys.readouterr().out
    assert main(["delete", "--name", name, "--version", "1", "--force"]) == 0
    assert "the name, which has no version left" in capsys.readouterr().out
    assert name not in [one.name for one in registry.search_registered_models()]
