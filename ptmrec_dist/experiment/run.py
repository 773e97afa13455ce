"""`ptmrec experiment`: run the unfinished steps, each command in its own process, then write the tables.

ptmrec experiment --config EXPERIMENT.yaml
ptmrec experiment --config EXPERIMENT.yaml --dry_run true     # print the plan
"""

import signal
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

import yaml

from ptmrec_dist.config import ExperimentConfig, encoder_label
from ptmrec_dist.errors import FAULT_CODE, Fault, UserError
from ptmrec_dist.experiment.checks import check_data, check_settings
from ptmrec_dist.experiment.executors import Executor, end_running, open_executor
from ptmrec_dist.experiment.grid import encoders_of
from ptmrec_dist.experiment.plan import Plan, Step, file_name, lay_out, settings_file, settings_of
from ptmrec_dist.experiment.results import write_results
from ptmrec_dist.experiment.unread import unread_settings
from ptmrec_dist.files import write_atomically
from ptmrec_dist.lineage import write_inputs
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.progress import Progress
from ptmrec_dist.tracking import Tracker

_SECONDS = 0.5
"""Longest wait in one piece: polars' handler of SIGINT lets a wait continue, so that Ctrl-C is seen after it."""


def run_experiment(config: ExperimentConfig) -> None:
    """Run an experiment and write its tables (`ptmrec experiment`); of a dry run, which may be beside it, print the plan.

    Args:
        config: Settings.

    Raises:
        UserError: A setting, a name or a method that some run would refuse, before any of them starts; a finished step
            with other settings; a run that failed.
        Fault: A run that was lost or killed.
        KeyboardInterrupt: The user stopped it; the same command resumes it.
    """
    if config.dry_run:
        _planned(config)
    else:
        _run_and_compare(config)


def _planned(config: ExperimentConfig) -> tuple[Plan, dict[str, str]]:
    """Check the settings, print the plan, and return it with the inputs."""
    plan = lay_out(config)
    check_settings(config, plan)
    inputs = check_data(config, plan)
    print(plan.describe())
    if unread := unread_settings(config, plan):
        print(f"settings that none of these runs reads: {', '.join(unread)}")
    return plan, inputs


@exclusive_out
def _run_and_compare(config: ExperimentConfig) -> None:
    plan, inputs = _planned(config)
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    write_inputs(out, inputs)
    for folder in ("settings", "logs"):
        (out / folder).mkdir(exist_ok=True)
    encoders = [encoder_label(encoder.recorded()) for encoder in encoders_of(config).values() if encoder is not None]
    with Tracker.start(
        config.tracking,
        name=out.name,
        params={"cells": len(plan.cells), "encoder": ", ".join(encoders), "seeds": len(config.seeds)},
        tags={"stage": "experiment"},
        folder=out,
    ) as tracker:
        packing = {name: step for name, step in plan.steps.items() if step.command == "pack" and not step.is_complete}
        if packing:
            _run_all(config, packing, tracker.run_id)
            check_data(config, plan)
        _run_all(config, plan.steps, tracker.run_id)
        written = write_results(config, plan)
        tracker.artifacts(written)


def _run_all(config: ExperimentConfig, steps: dict[str, Step], parent: str | None) -> None:
    """Run the steps in topological order, up to `processes` at a time."""
    waiting = {name: step for name, step in steps.items() if not step.is_complete}
    order = TopologicalSorter({name: waiting.keys() & step.needs for name, step in waiting.items()})
    order.prepare()
    running: dict[Future[None], str] = {}
    with (
        open_executor(config) as execute,
        ThreadPoolExecutor(config.processes) as pool,
        Progress(total=len(steps), initial=len(steps) - len(waiting), desc="experiment", unit="step") as bar,
    ):
        try:
            while order.is_active():
                for name in order.get_ready():
                    running[pool.submit(_run, config, execute, name, waiting[name], parent)] = name
                ended, _ = wait(running, _SECONDS, FIRST_COMPLETED)
                for future in ended:
                    name = running.pop(future)
                    future.result()
                    order.done(name)
                    bar.update()
                    bar.line(f"{name}: done")
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)  # the same command resumes the rest
            if isinstance(error, KeyboardInterrupt):
                bar.line(f"waiting for {', '.join(running.values())} to save what they have")
                end_running()
            raise  # of other errors, once running steps have finished


def _run(config: ExperimentConfig, execute: Executor, name: str, step: Step, parent: str | None) -> None:
    settings = settings_file(config, name)
    write_atomically(settings, yaml.safe_dump(settings_of(config, step, parent), sort_keys=False))
    arguments = [step.command, "--config", str(settings)]
    log = config.out / "logs" / f"{file_name(name)}.log"
    ranks = config.ranks if step.command in ("stage2", "joint", "contrastive") else 1
    code = execute(arguments, ranks, log)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) or (code == 0 and not step.is_complete):
        raise KeyboardInterrupt
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        mistake_or_fault = Fault if code == FAULT_CODE or code < 0 else UserError  # below 0: killed by a signal
        raise mistake_or_fault(
            f"{name} failed ({' '.join(last).strip()}); see {log}; once that is fixed, run the same command to resume"
        )
