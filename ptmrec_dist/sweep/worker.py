"""Jobs on the cluster: one training run on several DeepSpeed workers, started by Ray Train; Ray Tune starts lost ones again."""

import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

GROUP_FILE = ".placement_group"
"""Suffix to a job's `log`: the file that records its placement group."""

_RAY_TRAIN = {
    # On a busy machine, importing torch and DeepSpeed in every worker takes longer than Ray's default of a minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would write every line twice
}


def train_on_ranks(config: dict[str, Any]) -> None:
    """Run a job, as a trial of Ray Tune.

    Args:
        config: `job`: `command` and its `settings` (plain), `with_test`, deciding `part`, which epoch to `keep`, `rungs`
            after which to report, `ranks`, `resources` of a rank, `placement`, `scratch` of Ray, `log` (path without rank),
            `folder` to run in, `environment`.
    """
    job = config["job"]
    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from ptmrec_dist.distributed.cluster import remove_group

    remove_group(Path(job["log"] + GROUP_FILE))  # of an earlier attempt
    gpus = job["resources"].get("GPU", 0)
    TorchTrainer(
        train_rank,
        train_loop_config=job,
        torch_config=TorchConfig(
            backend="nccl" if gpus else "gloo", timeout_s=int(job["settings"].get("timeout", 600))
        ),
        scaling_config=ScalingConfig(
            num_workers=job["ranks"],
            use_gpu=bool(gpus),
            resources_per_worker=job["resources"],
            placement_strategy=job["placement"],
        ),
        # Without restarts: ranks of a trial that was stopped are lost, too, and a controller that replaced them in the moment
        # before it ends would leave their resources reserved.
        run_config=RunConfig(
            name=f"train-{Path(job['settings']['out']).name}",
            storage_path=job["scratch"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def train_rank(job: dict[str, Any]) -> None:
    """Run one rank of a job.

    Collective: every rank must call this.

    Args:
        job: As in `train_on_ranks`.
    """
    os.environ |= _RAY_TRAIN | job["environment"]
    os.chdir(job["folder"])
    import ray
    import ray.train

    from ptmrec_dist.config import from_plain
    from ptmrec_dist.distributed.cluster import record_group
    from ptmrec_dist.errors import UserError
    from ptmrec_dist.sweep.stages import STAGES

    stage = STAGES[job["command"]]
    settings: Any = from_plain(stage.settings, job["settings"])
    context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
    rank = context.get_world_rank()
    log = Path(f"{job['log']}-{rank}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        record_group(Path(job["log"] + GROUP_FILE))
    with log.open("a", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        print(f"rank {rank} of {context.get_world_size()} on node {node[:12]}")
        try:
            stage.train(settings, job["with_test"], _reporter(job))
        except UserError as error:  # raised by all ranks, and again in every attempt
            print(f"error: {error}")
            if rank == 0:
                Path(f"{job['settings']['out']}.refused").write_text(str(error))


def _reporter(job: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Make the function that tells Ray Tune the result that the run would have if it ended there.

    Only at the first evaluation after each rung, where it is decided whether the run goes on: Ray takes one report per
    health check, and a fast run would wait for that in every epoch.
    """
    import ray.train

    from ptmrec_dist.evaluation.metrics import SELECT
    from ptmrec_dist.training.early_stopping import EarlyStopping

    stopping, rungs = EarlyStopping(patience=1, keep=job["keep"]), list(job["rungs"])

    def report(line: dict[str, Any]) -> None:
        stopping.update(line[f"{job['part']}.{SELECT}"], line["epoch"])
        left = [rung for rung in rungs if rung > line["epoch"]]
        if left != rungs:
            rungs[:] = left
            ray.train.report({"epoch": line["epoch"], SELECT: stopping.kept})

    return report
