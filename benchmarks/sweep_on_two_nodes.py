"""A sweep on a Ray cluster of two nodes on this machine, while a rank, the driver and a whole node are killed.

python -m benchmarks.sweep_on_two_nodes [--trials 8] [--ranks 2] [--out FOLDER]

The trials' ranks are spread over both nodes. After one trial: SIGKILL to a rank. After two: SIGKILL to the driver, and the same
command with --resume. After four: one node is removed. Prints what was killed when, where ranks ran, how all trials ended, and
whether each trial's history equals that of the same stage 2 without interruption, to the last digit.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ptmrec_dist.config import Stage2Config, from_plain, merged
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import make_project
from tests.ranks import run_on_ranks
from tests.tiny_clip import write_tiny_clip


def main() -> None:
    """Run the sweep and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # reached from this machine only
    from ray.cluster_utils import Cluster

    folder = options.out or Path(tempfile.mkdtemp())
    (folder / "project").mkdir(parents=True)
    project = make_project(folder / "project", write_tiny_clip(folder / "clip"))
    # Twice what two trials need: a driver killed while Ray reserves resources for a trial can leave them reserved.
    node = {"num_cpus": 2 * options.ranks, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    settings = {
        "stage1": str(project.stage1),
        "out": str(folder / "sweep"),
        "space": {"prompt.length": {"randint": [1, 8]}, "optim.encoder_lr": {"loguniform": [1e-4, 1e-1]}},
        "stage2": {"epochs": 4, "batch_size": 12, "checkpoint_every": 1, "select_on": "validation"},
        "trials": options.trials,
        "concurrent": 2,
        "ranks": options.ranks,
        "asha": {"reduction": 2},
        "ray": {"address": cluster.address, "placement": "SPREAD"},
        "winner_seeds": [0, 1],
        "name": "swept",
        "device": "cpu",
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings))
    start = time.monotonic()
    driver = _Driver(folder, start)
    driver.begin()
    driver.wait_for(lambda: driver.ended >= 1 and _ranks())
    victim = _ranks()[0]
    os.kill(victim, signal.SIGKILL)
    driver.log(f"killed a rank (process {victim})")
    driver.wait_for(lambda: driver.ended >= 2 and _ranks())
    driver.process.kill()
    driver.process.wait()
    driver.log("killed the driver; resuming by the same command")
    driver.begin("--resume", "true")
    driver.wait_for(lambda: driver.ended >= 4 and _ranks())
    cluster.remove_node(second, allow_graceful=False)
    driver.log("killed a node")
    code = driver.process.wait()
    driver.log(f"ended with exit code {code}")
    _report(folder / "sweep", options.ranks)
    cluster.shutdown()


class _Driver:
    """The process of `ptmrec sweep`."""

    def __init__(self, folder: Path, start: float) -> None:
        self.folder, self.start = folder, start
        self.process: subprocess.Popen[bytes]

    def begin(self, *options: str) -> None:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        command = [sys.executable, "launchers/sweep.py", "--config", str(self.folder / "sweep.yaml"), *options]
        self.process = subprocess.Popen(command, env=environment)

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        texts = [path.read_text() for path in (self.folder / "sweep" / "trials").glob("*.json")]
        return sum(json.loads(text)["state"] != "open" for text in texts)

    def wait_for(self, ready: Callable[[], Any]) -> None:
        while not ready():
            if self.process.poll() is not None:
                raise SystemExit(f"the driver ended early with exit code {self.process.returncode}")
            time.sleep(0.2)

    def log(self, what: str) -> None:
        print(f"{time.monotonic() - self.start:7.1f} s: {what}, {self.ended} trials ended", flush=True)


def _ranks() -> list[int]:
    """Process ids of training workers on this machine, by Ray's process titles."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::RayTrainWorker" in line]


def _report(sweep: Path, ranks: int) -> None:
    trials = [json.loads(path.read_text()) for path in sorted((sweep / "trials").glob("*.json"))]
    print(Counter(trial["state"] for trial in trials))
    for trial in trials:
        name = f"{trial['number']:04d}"
        lines = "\n".join(path.read_text() for path in sorted((sweep / "logs").glob(f"{name}-*.log"))).splitlines()
        nodes = [line.split(" on node ")[1] for line in lines if " on node " in line]
        resumed = sum(line.startswith("resuming at step") for line in lines)
        history = (sweep / "trials" / name / "history.jsonl").read_text().splitlines()
        same = history == _uninterrupted(sweep / "trials" / name, ranks)[: len(history)]
        print(
            f"trial {name}: {trial['state']}, {len(history) - 1} epochs, {len(nodes) // ranks} starts on "
            f"{len(set(nodes))} nodes, {resumed} resumed, history {'equal' if same else 'DIFFERENT'}"
        )


def _uninterrupted(run: Path, ranks: int) -> list[str]:
    """History of the same stage 2 without interruption."""
    out = run.with_name(f"alone-{run.name}")
    plain = yaml.safe_load((run / "config.yaml").read_text())
    config = from_plain(Stage2Config, merged(plain, {"out": str(out), "tracking": {"enabled": False}}))
    run_on_ranks(ranks, train_stage2, config)
    return (out / "history.jsonl").read_text().splitlines()


if __name__ == "__main__":
    main()
