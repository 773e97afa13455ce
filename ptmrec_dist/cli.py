"""`ptmrec COMMAND …`: the only module that handles argv, `--config` and `--local_rank`. Imports nothing heavy."""

import importlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from ptmrec_dist import config
from ptmrec_dist.config.command_line import chosen_recommender, in_full, with_files
from ptmrec_dist.config.messages import in_our_form
from ptmrec_dist.errors import (
    FAULT_CODE,
    REMEDIES,
    Fault,
    FoundByFirst,
    UserError,
    fault_of,
    first_line,
    is_out_of_memory,
    nearest,
)
from ptmrec_dist.processes import Terminated, deferring_signals, is_first_rank, raising_on_sigterm
from ptmrec_dist.storage import with_local_copies

_DESCRIBING = ("-h", "--help", "--print_config")
"""Options that print what each setting is."""
_GRACE = 10.0
"""Seconds by which another rank than the first reports a mistake later: more than their starts lie apart."""


@dataclass(frozen=True)
class Command:
    """One command: the settings it takes and the function that takes them."""

    settings: type
    function: str  # "module:name", imported only when the command runs; may return an exit code
    measures: bool = False  # computes, shows or compares metrics, which its help lists


COMMANDS = {
    "import": Command(config.ImportConfig, "ptmrec_dist.data.importers.command:import_data"),
    "download": Command(config.DownloadConfig, "ptmrec_dist.data.downloading:download"),
    "pack": Command(config.PackConfig, "ptmrec_dist.data.packing.pack:pack"),
    "merge": Command(config.MergeConfig, "ptmrec_dist.data.packing.merge:merge"),
    "doctor": Command(config.DoctorConfig, "ptmrec_dist.doctor.command:doctor"),
    "features": Command(config.FeaturesConfig, "ptmrec_dist.encoders.features:extract_features"),
    "stage1": Command(config.Stage1Config, "ptmrec_dist.training.stage1:train_stage1", measures=True),
    "stage2": Command(config.Stage2Config, "ptmrec_dist.training.stage2:train_stage2", measures=True),
    "refit": Command(config.RefitConfig, "ptmrec_dist.training.refit:refit", measures=True),
    "joint": Command(config.JointConfig, "ptmrec_dist.training.joint:train_joint", measures=True),
    "contrastive": Command(config.ContrastiveConfig, "ptmrec_dist.training.contrastive:fine_tune"),
    "experiment": Command(config.ExperimentConfig, "ptmrec_dist.experiment.run:run_experiment", measures=True),
    "sweep": Command(config.SweepConfig, "ptmrec_dist.sweep.driver:run_sweep", measures=True),
    "evaluate": Command(config.EvaluateConfig, "ptmrec_dist.training.evaluating:evaluate_run", measures=True),
    "report": Command(config.ReportConfig, "ptmrec_dist.experiment.report:report", measures=True),
    "export": Command(config.ExportConfig, "ptmrec_dist.export.command:export_encoder"),
    "register": Command(config.RegisterConfig, "ptmrec_dist.registry.registering:register"),
    "promote": Command(config.PromoteConfig, "ptmrec_dist.registry.promoting:promote", measures=True),
    "add-items": Command(config.AddItemsConfig, "ptmrec_dist.registry.adding_items:add_items"),
    "rollback": Command(config.RollbackConfig, "ptmrec_dist.registry.promoting:rollback"),
    "delete": Command(config.DeleteConfig, "ptmrec_dist.registry.deleting:delete"),
    "models": Command(config.ModelsConfig, "ptmrec_dist.registry.listing:models", measures=True),
    "recommend": Command(config.RecommendConfig, "ptmrec_dist.registry.recommending:recommend"),
    "serve": Command(config.ServeConfig, "ptmrec_dist.registry.server:serve"),
    "demo": Command(config.DemoConfig, "ptmrec_dist.demo:demo"),
}


def usage() -> str:
    """Return the help text of `ptmrec` itself.

    Returns:
        A line for each command.
    """
    lines = [f"  {name:<11} {_summary(command.settings)}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: ptmrec COMMAND [--config FILE.yaml] [--OPTION VALUE …]", "", *lines, ""]) + (
        "\nptmrec COMMAND --help lists a command's options; --print_config prints them as YAML."
    )


def parse(settings: type, argv: Sequence[str], prog: str, epilog: str | None = None) -> Any:
    """Turn a command line into its settings.

    Args:
        settings: The dataclass of the command's settings.
        argv: Arguments after the command; `--local_rank` (added by DeepSpeed's launcher) is accepted and dropped.
        prog: Name shown in messages.
        epilog: Last lines of the help.

    Returns:
        An instance of `settings`.

    Raises:
        UserError: An unknown key, a value of the wrong type, or one that the settings refuse.
        SystemExit: After `--help` and `--print_config`.
    """
    from jsonargparse import ArgumentError

    words = in_full(argv, settings)
    recommender = chosen_recommender(words) if config.chooses_recommender(settings) else None
    words = with_files(words, settings)
    described = any(word.startswith(_DESCRIBING) for word in words)
    about = {"prog": prog, "description": _summary(settings), "epilog": epilog}
    parser = config.settings_parser(settings, recommender, described, **about)
    try:
        return config.build(settings, parser, parser.parse_args(words))
    except ArgumentError as error:
        message = in_our_form(str(error), parser._option_string_actions)
        raise UserError(f"{message}; {prog} --help lists the options") from error


def run(command: str, argv: Sequence[str], prog: str | None = None) -> int:
    """Run one command: a `UserError` becomes one line and exit code 2; a `Fault`, one line and exit code 3.

    So do errors of the system that a user can remove: a full disk, a file that may not be read or written, too little memory.
    Ctrl-C and SIGTERM are one line and 130 or 143.

    Args:
        command: A key of `COMMANDS`.
        argv: Arguments after the command.
        prog: Name shown in messages; by default `ptmrec COMMAND`.

    Returns:
        The exit code.
    """
    prog = prog or f"ptmrec {command}"
    _prepare_process()
    try:
        with _ending_in_order():
            settings = with_local_copies(parse(COMMANDS[command].settings, argv, prog, _epilog(command, argv)))
            with deferring_signals():  # numpy and others do not survive an interrupt while they are imported
                function = _function(COMMANDS[command].function)
            code = function(settings)
    except UserError as error:
        return _report_mistake(prog, error)
    except Fault as error:
        return _report_fault(prog, error)
    except OSError as error:
        if error.errno not in REMEDIES:  # a mistake of ours, shown with a traceback
            raise
        return _report_fault(prog, fault_of(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "use smaller batches or a smaller model, or a machine with more memory"
        return _report_fault(prog, Fault(f"out of memory ({first_line(error)}); {remedy}"))
    except KeyboardInterrupt as stop:
        return _report_interrupt(prog, stop)
    return code if isinstance(code, int) else 0


def run_command(command: str, settings: Mapping[str, Any]) -> None:
    """Run one command in this process, from Python: a notebook, a script, a scheduler's task.

    It does what `ptmrec COMMAND --config FILE` does with a file of these settings, but raises what the command line reports.

    Args:
        command: Name of the command: `pack`, `features`, `stage1`, ...
        settings: Values by the keys of its YAML file, nested (`{"model": {"dim": 64}}`) or dotted (`{"model.dim": 64}`); what
            is left out has its default.

    Raises:
        UserError: An unknown command or key, a value that is refused, or any mistake in the input.
        Fault: An external failure: a lost rank, a full disk.

    Example:
        >>> run_command("stage1", {"shards": "shards/movies", "recommender": "lightgcn", "out": "runs/a", "model.layers": 3})
    """
    if command not in COMMANDS:
        raise UserError(_unknown(command))
    found: Any = config.from_plain(COMMANDS[command].settings, config.nested(settings))
    _function(COMMANDS[command].function)(with_local_copies(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptmrec`.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("ptmrec-dist"))
        return 0
    if argv[0] not in COMMANDS:
        print(f"ptmrec: error: {_unknown(argv[0])}", file=sys.stderr)
        return 2
    return run(argv[0], argv[1:])


def launch(command: str) -> NoReturn:
    """Run one command with the arguments of this process and end it: what each script in `launchers/` calls.

    Args:
        command: A key of `COMMANDS`; the script is called like it.

    Raises:
        SystemExit: With the exit code of `run`.
    """
    raise SystemExit(run(command, sys.argv[1:], prog=f"launchers/{command}.py"))


def _unknown(command: str) -> str:
    return f"unknown command {command!r}; expected one of {', '.join(COMMANDS)}{nearest(command.lower(), COMMANDS)}"


def _report_mistake(prog: str, error: UserError) -> int:
    """All ranks read the same input, so the first reports for all; another only what the first has not found by then."""
    if not is_first_rank():
        time.sleep(_GRACE)  # a launcher ends the first rank, perhaps before it reports, as soon as any has ended
        prog = f"{prog}: rank {os.environ['RANK']}"
    if not isinstance(error, FoundByFirst):
        print(f"{prog}: error: {error}", file=sys.stderr, flush=True)
    return 2


def _report_fault(prog: str, error: Fault) -> int:
    print(f"{prog}: rank {os.environ.get('RANK', '0')}: error: {error}", file=sys.stderr, flush=True)
    return FAULT_CODE


def _ending_in_order() -> AbstractContextManager[None]:
    """SIGTERM ends a command as Ctrl-C does; a rank ends at once, since it may wait for one that is gone."""
    return raising_on_sigterm(Terminated) if os.environ.get("WORLD_SIZE", "1") == "1" else nullcontext()


def _report_interrupt(prog: str, stop: KeyboardInterrupt) -> int:
    if is_first_rank():
        print(f"{prog}: interrupted; run the same command again", file=sys.stderr, flush=True)
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _summary(settings: type) -> str:
    return (settings.__doc__ or "").strip().splitlines()[0]


def _epilog(command: str, argv: Sequence[str]) -> str | None:
    """List the metrics in the help of commands that measure; their table is not imported for anything else."""
    if not COMMANDS[command].measures or not {"-h", "--help"} & set(argv):
        return None
    from ptmrec_dist.evaluation.metrics import describe_metrics

    return describe_metrics()


def _prepare_process() -> None:
    """Set the environment variables that libraries read on import; child processes inherit them."""
    # Spinning threads slow everything down fivefold if another process needs a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    for message in ("Sparse", "`torch.jit.script` is deprecated"):
        warnings.filterwarnings("ignore", message=message)


def _function(path: str) -> Callable[[Any], object]:
    module, name = path.split(":")
    function: Callable[[Any], object] = getattr(importlib.import_module(module), name)
    return function
