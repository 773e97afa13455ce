"""Tracking against a real MLflow: on SQLite, and a server on PostgreSQL."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ptmrec_dist.config import TrackingConfig
from ptmrec_dist.distributed import barrier, join_world
from ptmrec_dist.errors import UserError
from ptmrec_dist.mlflow_store import tracking_uri
from ptmrec_dist.tracking import NOTE_FILE, Tracker, is_open
from tests.ranks import run_on_ranks
from tests.stores import KINDS, Store

ON = TrackingConfig(experiment="films")


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A fresh store: the default one in the working directory, or a server on PostgreSQL."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_sqlite"), tmp_path)
        return Store(tracking_uri(), tracking_uri(), tmp_path / "mlartifacts")
    server: Store = request.getfixturevalue("mlflow_server")
    server.empty()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server


@pytest.fixture
def store(backend: Store) -> MlflowClient:
    return MlflowClient(backend.uri)


@pytest.fixture
def start(store: MlflowClient) -> Callable[..., Tracker]:
    def start(**settings: object) -> Tracker:
        return Tracker.start(ON, **{"name": "a", "params": {}, "tags": {}} | settings)  # type: ignore[arg-type]

    return start


def all_runs(store: MlflowClient) -> list[str]:
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    return [run.info.run_id for run in store.search_runs(experiments)]


def history(store: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.get_metric_history(run_id, name)]


def test_run_holds_settings_metrics_tags_and_files(store, start, tmp_path):
    (tmp_path / "metrics.json").write_text('{"test": 1}')
    params = {f"model.key{number}": number for number in range(130)} | {"model.dim": None}
    with start(params=params, tags={"data": "f00d"}) as tracker:
        tracker.metrics({"loss": 2.0, "validation.recall@20": 0.1}, step=1)
        tracker.metrics({"loss": 1.0, "validation.recall@20": 0.2}, step=2)
        tracker.artifacts([tmp_path / "metrics.json"])
    run = store.get_run(tracker.run_id)
    assert run.data.params == {name: str(value) for name, value in params.items()}
    assert run.data.tags["data"] == "f00d"
    assert history(store, tracker.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert history(store, tracker.run_id, "validation/recall_at_20") == [(1, 0.1), (2, 0.2)]
    assert run.info.status == "FINISHED"
    assert store.get_experiment(run.info.experiment_id).name == "films"
    copied = store.download_artifacts(tracker.run_id, "metrics.json", str(tmp_path))
    assert Path(copied).read_text() == '{"test": 1}'
    assert [file.path for file in store.list_artifacts(tracker.run_id)] == ["metrics.json"]


def test_resumed_run_doubles_nothing(store, start, tmp_path):
    with start(params={"lr": 0.1}, folder=tmp_path) as first:
        for step in (1, 2, 3):
            first.metrics({"loss": 1 / step, "validation.recall@20": step / 10}, step)
        first.interrupted()
    assert store.get_run(first.run_id).info.status == "KILLED"
    with start(params={"lr": 0.1, "late": 1}, folder=tmp_path) as second:
        assert store.get_run(first.run_id).info.status == "RUNNING"
        for step in (2, 3, 4):  # the checkpoint was older than the last metrics
            second.metrics({"loss": 1 / step, "validation.recall@20": step / 10}, step)
    assert second.run_id == first.run_id
    assert all_runs(store) == [first.run_id]
    assert history(store, first.run_id, "loss") == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert history(store, first.run_id, "validation/recall_at_20") == [(step, step / 10) for step in (1, 2, 3, 4)]
    assert store.get_run(first.run_id).data.params == {"lr": "0.1", "late": "1"}
    assert store.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_that_was_created_before_it_could_be_recorded_is_found_again(store, start, tmp_path, monkeypatch):
    """The process was killed right after the server had created it."""
    note, create_run = tmp_path / NOTE_FILE, MlflowClient.create_run
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", lambda *one, **more: create_run(*one, **more) and sys.exit())
        with pytest.raises(SystemExit):
            start(folder=tmp_path)
    assert json.loads(note.read_text())["mlflow_run"] is None
    with start(folder=tmp_path) as found:
        assert is_open(tmp_path)
    assert all_runs(store) == [found.run_id]
    assert json.loads(note.read_text()) == {"mlflow_run": found.run_id}


def test_run_that_is_gone_is_replaced_with_a_warning(store, start, caplog, tmp_path):
    with start() as first:
        pass
    store.delete_run(first.run_id)
    for gone in (first.run_id, "0123456789abcdef0123456789abcdef"):
        (tmp_path / NOTE_FILE).write_text(json.dumps({"mlflow_run": gone}))
        with start(folder=tmp_path) as tracker:
            assert tracker.run_id != gone
        assert gone in caplog.text


def test_status_says_how_the_run_ended(store, start):
    runs = []

    def run_into(error: type[BaseException]) -> None:
        with start() as tracker:
            runs.append(tracker.run_id)
            raise error

    with pytest.raises(ZeroDivisionError):
        run_into(ZeroDivisionError)
    with pytest.raises(KeyboardInterrupt):
        run_into(KeyboardInterrupt)
    with start() as stopped:
        stopped.interrupted()
    assert [store.get_run(run).info.status for run in [*runs, stopped.run_id]] == ["FAILED", "KILLED", "KILLED"]


def test_stage_2_is_found_under_stage_1(store, start):
    with start(name="a") as parent:
        pass
    with start(name="b", parent=parent.run_id, tags={"stage": "2"}) as child:
        pass
    assert store.get_parent_run(child.run_id).info.run_id == parent.run_id
    assert store.get_run(child.run_id).data.tags["stage"] == "2"
    assert store.get_parent_run(parent.run_id) is None


def test_trackers_in_one_process_do_not_mix(store, start):
    with start(name="a") as one, start(name="b") as other:
        for step in (1, 2):
            one.metrics({"loss": 1.0}, step)
            other.metrics({"loss": 2.0}, step)
    assert history(store, one.run_id, "loss") == [(1, 1.0), (2, 1.0)]
    assert history(store, other.run_id, "loss") == [(1, 2.0), (2, 2.0)]


def test_only_the_first_rank_logs(store, start, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with start() as by_environment, start(active=False) as by_argument:
        by_environment.metrics({"loss": 1.0}, 1)
        by_environment.tags({"a": "b"})
        by_environment.artifacts([Path("absent")])
    assert by_environment.run_id is None
    assert by_argument.run_id is None
    assert all_runs(store) == []


@pytest.mark.parametrize("reason", ["switched off", "not installed"])
def test_without_mlflow_nothing_is_written_and_one_line_says_so(reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    if reason == "not installed":
        monkeypatch.setitem(sys.modules, "mlflow", None)
    with Tracker.start(TrackingConfig(enabled=reason != "switched off"), name="a", params={}, tags={}) as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    assert tracker.run_id is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tracking: off")
    assert list(tmp_path.iterdir()) == []


def test_server_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as raised:
        Tracker.start(ON, name="a", params={}, tags={}, active=True)
    assert "127.0.0.1" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_store_that_fails_for_a_while_stops_nothing_and_loses_nothing(backend, store, start, tmp_path, caplog):
    with start() as tracker:
        tracker.metrics({"loss": 3.0}, 1)
        backend.execute("ALTER TABLE metrics RENAME TO away")
        with caplog.at_level(logging.WARNING):
            tracker.metrics({"loss": 2.0}, 2)
            tracker.artifacts([tmp_path / "absent.json"])
        backend.execute("ALTER TABLE away RENAME TO metrics")
        tracker.metrics({"loss": 1.0}, 3)
    assert "1 metrics and tags wait for the next call" in caplog.text
    assert "absent.json is not copied" in caplog.text
    assert history(store, tracker.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert store.get_run(tracker.run_id).info.status == "FINISHED"


TRIALS, STEPS = 4, 25


def log_a_trial(uri: str, parent: str) -> str | None:
    """What one of two ranks of one of four trials does, all of them at once."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    world = join_world("cpu")
    trial, os.environ["RANK"] = world.rank // 2, str(world.rank % 2)
    with Tracker.start(ON, name=f"trial{trial}", params={"trial": trial}, tags={}, parent=parent) as tracker:
        barrier()
        for step in range(STEPS):
            tracker.metrics({"loss": trial + step / 100, "validation.recall@20": step / 50}, step)
    return tracker.run_id


@pytest.mark.slow
def test_four_trials_of_two_ranks_log_at_once_and_nothing_is_lost_or_doubled(backend, store, start):
    with start(name="sweep") as parent:
        runs = run_on_ranks(2 * TRIALS, log_a_trial, backend.uri, parent.run_id)
    assert runs[1::2] == [None] * TRIALS
    assert sorted(all_runs(store)) == sorted([parent.run_id, *runs[::2]])
    for trial, run_id in enumerate(runs[::2]):
        run = store.get_run(run_id)
        assert run.data.params == {"trial": str(trial)}
        assert (run.info.run_name, run.info.status) == (f"trial{trial}", "FINISHED")
        assert store.get_parent_run(run_id).info.run_id == parent.run_id
        assert history(store, run_id, "loss") == [(step, trial + step / 100) for step in range(STEPS)]
        assert history(store, run_id, "validation/recall_at_20") == [(step, step / 50) for step in range(STEPS)]


def test_a_command_that_connects_several_times_says_so_once(
    empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_sqlite, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    program = "from ptmrec_dist.mlflow_store import connect; connect(); connect()"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ended.stderr.count("connecting to MLflow") == 1
