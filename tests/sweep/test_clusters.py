"""The files for Ray that we ship are ones that Ray, and our own parser, read."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ptmrec_dist import cli
from ptmrec_dist.config import SweepConfig
from ptmrec_dist.sweep.space import check_space, read_space
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "ray_configs"


def _read(name: str) -> Any:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def _schema() -> Any:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", ["cluster-local", "cluster-aws"])
def test_a_cluster_holds_to_rays_own_schema_before_and_after_its_defaults_are_filled_in(name: str) -> None:
    jsonschema.validate(_read(name), _schema())
    validate_config(prepare_config(_read(name)))


def test_the_schema_notices_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(_read("cluster-local") | {"max_wrokers": 2}, _schema())


def test_the_kubernetes_job_mounts_what_it_names_and_starts_a_command_that_we_have() -> None:
    spec = _read("cluster-kubernetes")["spec"]
    cluster = spec["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    program, command, *options = shlex.split(spec["entrypoint"])
    assert program == "ptmrec"
    options[options.index("--config") + 1] = str(CONFIGS / "search-prompt.yaml")
    assert cli.parse(cli.COMMANDS[command].settings, options, command).out == Path("/shared/sweeps/prompt")


_CONNECTED = """
import os, signal
from ptmrec_dist.config import RayConfig
from ptmrec_dist.distributed.cluster import connected
from ptmrec_dist.processes import Terminated, raising_on_sigterm
try:
    with raising_on_sigterm(Terminated), connected(RayConfig()):
        os.kill(os.getpid(), signal.SIGTERM)
except Terminated:
    print("ended in order")
"""


@pytest.mark.slow
def test_sigterm_ends_a_process_that_is_connected_to_ray_in_order() -> None:
    """Ray's own handlers abort with a stack trace, or exit at once."""
    done = subprocess.run([sys.executable, "-c", _CONNECTED], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("ended in order\n", "", 0)


@pytest.mark.parametrize(("name", "setting", "values"), [("last-n", "n", {1, 2, 4}), ("prompt", "length", {1, 16})])
def test_the_searches_that_we_ship_are_such_that_stage_2_takes_them(name: str, setting: str, values: set[int]) -> None:
    config = cli.parse(SweepConfig, ["--config", str(CONFIGS / f"search-{name}.yaml")], "ptmrec sweep")
    assert {getattr(point.tuning.settings, setting) for point in check_space(config, read_space(config))} == values


def test_the_search_of_stage_1_that_we_ship_is_one_that_stage_1_takes() -> None:
    config = cli.parse(SweepConfig, ["--config", str(CONFIGS / "search-stage1.yaml")], "ptmrec sweep")
    points = check_space(config, read_space(config))
    assert {point.model.dim for point in points} == {32, 64, 128}
    assert {point.model.reg_weight for point in points} == {0.0001, 1.0}
