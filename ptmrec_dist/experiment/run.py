"""`ptmrec experiment`: run the unfinished steps, each command in its own process, then write the tables.

ptmrec experiment --config EXPERIMENT.yaml
"""

import json
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from graphlib import TopologicalSorter
from typing import Any

import yaml
from tqdm import tqdm

from ptmrec_dist.config import (
    ContrastiveConfig,
    ExperimentConfig,
    FeaturesConfig,
    JointConfig,
    Stage1Config,
    Stage2Config,
    TunesEncoder,
    encoder_label,
    from_plain,
)
from ptmrec_dist.errors import UserError
from ptmrec_dist.experiment.executors import Executor, open_executor
from ptmrec_dist.experiment.grid import Plan, Step, lay_out
from ptmrec_dist.experiment.inputs import check_finished, inputs_of
from ptmrec_dist.experiment.results import write_results
from ptmrec_dist.files import read_json, read_yaml
from ptmrec_dist.lineage import INPUTS_FILE, check_inputs, write_inputs
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.run_folder import PATHS

_SETTINGS: dict[str, type] = {
    "features": FeaturesConfig,
    "contrastive": ContrastiveConfig,
    "stage1": Stage1Config,
    "stage2": Stage2Config,
    "joint": JointConfig,
}


@exclusive_out
def run_experiment(config: ExperimentConfig) -> None:
    """Run an experiment and write its tables (`ptmrec experiment`).

    Args:
        config: Settings.

    Raises:
        UserError: A setting, a name or a method that some run would refuse, before any of them starts; a finished step
            with other settings; a run that failed.
        KeyboardInterrupt: The user stopped it; the same command resumes it.
    """
    plan = lay_out(config)
    inputs = _check(config, plan)
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    write_inputs(out, inputs)
    for folder in ("settings", "logs"):
        (out / folder).mkdir(exist_ok=True)
    parent = out / "tracking.json"
    known = read_json(parent, "out").get("mlflow_run") if parent.is_file() else None
    with Tracker.start(
        config.tracking,
        name=out.name,
        params={
            "cells": len(plan.cells),
            "encoder": encoder_label(config.encoder.recorded()),
            "seeds": len(config.seeds),
        },
        tags={"stage": "experiment"},
        run_id=known,
    ) as tracker:
        parent.write_text(json.dumps({"mlflow_run": tracker.run_id}))
        _run_all(config, plan, tracker.run_id)
        written = write_results(config, plan)
        tracker.artifacts(written)


def _check(config: ExperimentConfig, plan: Plan) -> dict[str, str]:
    """Refuse up front what a run would refuse hours later; returns the fingerprints of the experiment's inputs."""
    from ptmrec_dist.data.dataset import Dataset
    from ptmrec_dist.encoders.features import require_content

    begun = (config.out / "settings").is_dir()
    if config.out.exists() and not begun and {path.name for path in config.out.iterdir()} - {INPUTS_FILE}:
        raise UserError(f"out: {config.out} exists and holds no experiment; choose another --out")
    parsed = {name: _parsed(config, name, step) for name, step in plan.steps.items()}
    dataset = Dataset(config.shards)
    dataset.require("validation", "test")
    if any(step.command != "stage1" for step in plan.steps.values()):
        modalities = [
            {"both": ("image", "text"), "none": ()}.get(cell.modalities, (cell.modalities,)) for cell in plan.cells
        ]
        require_content(dataset, *sorted(set().union(*modalities)))
        _check_methods(config, [settings for settings in parsed.values() if isinstance(settings, TunesEncoder)])
    for name, step in plan.steps.items():
        before = config.out / "settings" / f"{_file(name)}.yaml"
        if before.is_file() and _without_paths(read_yaml(before, "out")) != _without_paths(
            _settings(config, step, None)
        ):
            raise UserError(f"out: {name} was started with other settings ({before}); choose another --out")
    inputs = inputs_of(config, plan, dataset)
    if begun:
        check_inputs(config.out, inputs)
    check_finished(plan, inputs)
    return inputs


def _check_methods(config: ExperimentConfig, tuned: list[TunesEncoder]) -> None:
    import torch

    from ptmrec_dist.encoders.encoder import Encoder
    from ptmrec_dist.encoders.sources.loading import load_backbone

    for tuning in sorted({settings.tuning for settings in tuned}, key=str):
        backbone = load_backbone(config.encoder)
        Encoder(backbone, backbone.modalities).tune(tuning.method, tuning.settings, torch.Generator())


def _parsed(config: ExperimentConfig, name: str, step: Step) -> Any:
    """The settings of a step, parsed as its command will parse them."""
    try:
        return from_plain(_SETTINGS[step.command], _settings(config, step, None))
    except UserError as error:
        raise UserError(f"{step.command}: {error} (in {name})") from error


def _settings(config: ExperimentConfig, step: Step, parent: str | None) -> dict[str, Any]:
    tracking = {} if step.command == "features" else {"tracking": {**asdict(config.tracking), "parent": parent}}
    return {"out": str(step.folder), **step.settings, **tracking}


def _run_all(config: ExperimentConfig, plan: Plan, parent: str | None) -> None:
    """Run the steps in topological order, up to `processes` at a time."""
    waiting = {name: step for name, step in plan.steps.items() if not step.is_complete}
    order = TopologicalSorter({name: waiting.keys() & step.needs for name, step in waiting.items()})
    order.prepare()
    running: dict[Future[None], str] = {}
    with (
        open_executor(config) as execute,
        ThreadPoolExecutor(config.processes) as pool,
        tqdm(total=len(plan.steps), initial=len(plan.steps) - len(waiting), desc="experiment", unit="step") as bar,
    ):
        try:
            while order.is_active():
                for name in order.get_ready():
                    running[pool.submit(_run, config, execute, name, waiting[name], parent)] = name
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    name = running.pop(future)
                    future.result()
                    order.done(name)
                    bar.update()
                    bar.write(f"{name}: done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # running steps finish; the same command resumes the rest
            raise


def _run(config: ExperimentConfig, execute: Executor, name: str, step: Step, parent: str | None) -> None:
    settings = config.out / "settings" / f"{_file(name)}.yaml"
    settings.write_text(yaml.safe_dump(_settings(config, step, parent), sort_keys=False))
    arguments = [step.command, "--config", str(settings)]
    log = config.out / "logs" / f"{_file(name)}.log"
    ranks = config.ranks if step.command in ("stage2", "joint", "contrastive") else 1
    code = execute(arguments, ranks, log)
    if code == 130 or (code == 0 and not step.is_complete):
        raise KeyboardInterrupt
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise UserError(f"{name} failed ({' '.join(last).strip()}); see {log}, and run the same command to resume")


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without paths and device: inputs are compared by fingerprints instead."""
    return {name: value for name, value in settings.items() if name not in PATHS | {"out", "tracking", "device"}}


def _file(name: str) -> str:
    return name.replace("/", "-")
