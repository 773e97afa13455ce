"""Whole sweeps on a real cluster of two nodes, one of which is lost: no trial reads the test split, each is reported once."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from ptmrec_dist.config import AshaConfig, RayConfig, Stage1Config, SweepConfig, from_plain
from ptmrec_dist.distributed.cluster import record_group, remove_group
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_yaml
from ptmrec_dist.sweep.driver import run_sweep
from tests.conftest import Project

pytestmark = pytest.mark.slow

TEST_FILES = ("test.parquet", "cold_test.parquet")
EPOCHS = 4


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended."""

    config: SweepConfig
    """Its settings."""
    store: str
    """Its MLflow."""
    hidden: Path
    """Where the files of the test split lie meanwhile."""


def _trials(config: SweepConfig) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((config.out / "trials").glob("*.json"))]


def _runs(store: str, parent: str) -> dict[str, Any]:
    client = MlflowClient(store)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent}


def _pull_the_plug(cluster: Any, node: Any) -> None:
    """All processes of a node are gone at once; Ray has to find out."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [*raylet.children(recursive=True), raylet]:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def _parent(config: SweepConfig) -> str:
    return str(json.loads((config.out / "tracking.json").read_text())["mlflow_run"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it is reached from this machine only, and gone in a minute
        patch.setenv("RAY_worker_niceness", "0")  # or tests beside it would have all of the machine
        node = {"num_cpus": 2, "object_store_memory": 100_000_000}
        found = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        second = found.add_node(**node)
        ray.init(address=found.address, log_to_driver=False)
        yield found, second
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def swept(cluster: Any, tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """A trial of two ranks on shards that lack the test split; the second node is killed under it."""
    folder = tmp_path_factory.mktemp("sweep")
    shards, hidden, store = folder / "shards", folder / "hidden", f"sqlite:///{folder}/mlflow.db"
    shutil.copytree(tiny_project.shards, shards)
    hidden.mkdir()
    for name in TEST_FILES:
        shutil.move(shards / "interactions" / name, hidden / name)
    config = SweepConfig(
        stage1=tiny_project.stage1,
        shards=shards,
        out=folder / "out",
        space={"prompt.length": {"randint": [1, 4]}, "optim.encoder_lr": {"loguniform": [1e-4, 1e-1]}},
        stage2={
            "tuning": {"method": "prompt"},
            "epochs": EPOCHS,
            "batch_size": 12,
            "checkpoint_every": 1,
            "select_on": "validation",
            "refit": True,
        },
        trials=1,
        ranks=2,
        asha=AshaConfig(enabled=False),
        ray=RayConfig(placement="SPREAD"),
        concurrent=1,
        winner_seeds=(),
        device="cpu",
    )
    nodes, second = cluster
    ended = threading.Event()

    def kill() -> None:
        # From the first checkpoint on the trial can be resumed, and most of the trial is still to come.
        while not list((config.out / "trials" / "0000" / "checkpoints").glob("step-*")):
            if ended.wait(0.05):
                return
        _pull_the_plug(nodes, second)

    killer = threading.Thread(target=kill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        killer.start()
        try:
            run_sweep(config)
        finally:
            ended.set()
            killer.join()
        yield Swept(config, store, hidden)


def test_a_sweep_ends_complete_though_a_node_was_killed_under_a_trial(swept: Swept) -> None:
    (trial,) = _trials(swept.config)
    assert trial["state"] == "complete"
    ranks = [(swept.config.out / "logs" / f"0000-{rank}.log").read_text() for rank in (0, 1)]
    assert any("resuming at step" in log for log in ranks)  # not from the start
    first, last = ([re.findall(r"rank \d of 2 on node (\w+)", log)[turn] for log in ranks] for turn in (0, -1))
    assert first[0] != first[1]
    assert last[0] == last[1]  # on the one that is left
    assert last[0] in first
    lines = (swept.config.out / "trials" / "0000" / "history.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [line["epoch"] for line in history] == list(range(EPOCHS + 1))
    assert trial["value"] == history[-1]["validation.recall@20"]  # stage 2 keeps the last epoch


def test_nothing_of_the_test_split_is_in_files_metrics_or_mlflow_of_a_trial(swept: Swept) -> None:
    folder = swept.config.out / "trials" / "0000"
    assert json.loads((folder / "metrics.json").read_text()).keys() == {"validation", "cold_validation"}
    for path in (folder / "metrics.json", folder / "history.jsonl"):
        assert "test" not in path.read_text()
    run = _runs(swept.store, _parent(swept.config))["0000"]
    assert not [name for name in run.data.metrics if "test" in name]
    assert "cold_validation/recall_at_20" in run.data.metrics


def test_each_trial_is_a_child_of_the_sweep_with_every_epoch_once(swept: Swept) -> None:
    client = MlflowClient(swept.store)
    (run,) = _runs(swept.store, _parent(swept.config)).values()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "cold_validation/recall_at_20")
    assert [point.step for point in history] == list(range(EPOCHS + 1))
    parent = client.get_run(_parent(swept.config))
    assert parent.info.status == "FINISHED"


def test_resources_of_a_lost_trial_are_released(cluster: Any, tmp_path: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    everything = [{"CPU": 1}] * int(ray.cluster_resources()["CPU"])
    taken = placement_group(everything)
    inside = PlacementGroupSchedulingStrategy(taken)
    ray.get(ray.remote(record_group).options(scheduling_strategy=inside).remote(tmp_path / "group"))
    for _ in range(2):  # what is free stays so
        remove_group(tmp_path / "group")
    assert not list(tmp_path.iterdir())
    again = placement_group(everything)
    assert again.wait(60)
    ray.util.remove_placement_group(again)


def test_a_folder_of_another_sweep_is_refused(swept: Swept) -> None:
    with pytest.raises(UserError, match=r"holds a sweep with other settings \(ranks 2 -> 1\)"):
        run_sweep(replace(swept.config, ranks=1))


def test_a_trial_larger_than_the_cluster_is_refused_with_both_numbers(swept: Swept, tmp_path: Path) -> None:
    config = replace(swept.config, out=tmp_path / "out", ranks=4, ray=RayConfig(cpus=3))
    with pytest.raises(UserError, match=r"need 12 CPUs and 0 GPUs, but the cluster has 2 CPUs and 0 GPUs on 1 nodes"):
        run_sweep(config)
    assert not (tmp_path / "out").exists()


def test_a_resumed_sweep_keeps_what_has_ended_runs_the_rest_and_tests_the_winner_alone(swept: Swept) -> None:
    out = swept.config.out
    before = _trials(swept.config)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/0000/*")}
    for name in TEST_FILES:
        shutil.copy(swept.hidden / name, swept.config.shards / "interactions" / name)  # type: ignore[operator]
    resumed = replace(swept.config, resume=True, trials=2, winner_seeds=(5,), name="swept")
    run_sweep(resumed)
    trials = _trials(swept.config)
    assert trials[:1] == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [trial["state"] for trial in trials] == ["complete"] * 2
    assert _runs(swept.store, _parent(swept.config)).keys() == {"0000", "0001", "seed-5"}
    assert "test" not in (out / "trials" / "0001" / "metrics.json").read_text()
    artifacts = {item.path for item in MlflowClient(swept.store).list_artifacts(_parent(swept.config))}
    assert {"best.yaml", "trials.csv", "sweep.yaml", "parallel_coordinates.png", "importance.png"} <= artifacts
    best = max(trials, key=lambda trial: trial["value"])
    assert yaml.safe_load((out / "best.yaml").read_text())["prompt"]["length"] == best["point"]["prompt.length"]
    assert not (out / "trials" / "0001" / "refit").exists()
    refit = out / "winner" / "seed-5" / "refit"
    metrics = json.loads((refit / "metrics.json").read_text())
    assert metrics.keys() == {"validation", "test", "cold_validation", "cold_test"}
    mean = json.loads((out / "winner.json").read_text())["mean"]
    assert mean["cold_test.recall@20"] == metrics["cold_test"]["recall@20"]
    version = MlflowClient(swept.store).get_model_version_by_alias("swept", "candidate")
    assert str(version.version) == "1"
    assert version.tags["run"] == json.loads((refit / "run.json").read_text())["fingerprint"]
    assert version.tags["stage2"] == json.loads((refit.parent / "run.json").read_text())["fingerprint"]
    run_sweep(replace(resumed, resume=False))  # nothing is done twice
    assert len(MlflowClient(swept.store).search_model_versions("name='swept'")) == 1


def test_a_sweep_of_stage_1_is_resumed_and_its_winner_alone_is_tested_and_registered(
    swept: Swept, tiny_project: Project, tmp_path: Path
) -> None:
    shards, store = tmp_path / "shards", f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copytree(tiny_project.shards, shards)
    for name in TEST_FILES:
        shutil.move(shards / "interactions" / name, tmp_path / name)
    config = SweepConfig(
        train={"features": str(tiny_project.features), "epochs": 5, "batch_size": 64, "model": {"dim": 8}, "lr": 0.02},
        shards=shards,
        out=tmp_path / "out",
        space={"recommender": {"choice": ["lightgcn", "vbpr"]}, "model.layers": {"choice": [1]}},
        search="grid",
        asha=AshaConfig(grace=2),
        winner_seeds=(),
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        run_sweep(config)
        trials = _trials(config)
        for name in TEST_FILES:
            shutil.move(tmp_path / name, shards / "interactions" / name)
        run_sweep(replace(config, winner_seeds=(5,), name="films"))
    assert _trials(config) == trials
    for trial, recommender in zip(trials, ("lightgcn", "vbpr"), strict=True):
        run = config.out / "trials" / f"{trial['number']:04d}"
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        values = [line["validation.recall@20"] for line in history]
        # Stage 1 keeps the best epoch; a trial that ASHA stops may evaluate once more before it ends.
        assert trial["value"] == max(values) if trial["state"] == "complete" else trial["value"] in values
        assert "test" not in (run / "history.jsonl").read_text()
        if trial["state"] == "complete":
            assert "test" not in (run / "metrics.json").read_text()
            record = json.loads((run / "run.json").read_text())
            assert (record["recommender"], record["kept_epoch"]) == (recommender, trial["epoch"])
    assert {"0000", "0001", "seed-5"} == _runs(store, _parent(config)).keys()
    best = yaml.safe_load((config.out / "best.yaml").read_text())
    winner = config.out / "winner" / "seed-5"
    assert (
        from_plain(Stage1Config, best | {"out": "a"}).recommender
        == read_yaml(winner / "config.yaml", "out")["recommender"]
    )
    assert {"validation", "test"} <= json.loads((winner / "metrics.json").read_text()).keys()
    version = MlflowClient(store).get_model_version_by_alias("films", "candidate")
    assert version.tags["run"] == json.loads((winner / "run.json").read_text())["fingerprint"]
