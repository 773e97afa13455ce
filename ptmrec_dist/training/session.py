"""What surrounds the training of a run: its folder, tracker, heartbeat, checkpoints, signals, and the cost of its epochs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ptmrec_dist.config import Stage1Config, TrackingConfig, TunesEncoder
from ptmrec_dist.distributed import World, barrier
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.processes import is_first_rank
from ptmrec_dist.tracking import Tracker, is_open
from ptmrec_dist.training.checkpoint import Checkpoints
from ptmrec_dist.training.evaluator import Metrics
from ptmrec_dist.training.interrupt import Interrupt
from ptmrec_dist.training.meter import Meter
from ptmrec_dist.training.printing import print_metrics
from ptmrec_dist.training.records import ENCODER_FILE, RECOMMENDER_FILE, RunRecord
from ptmrec_dist.training.run_folder import CHECKPOINTS, RunFolder, flatten

Report = Callable[[dict[str, Any]], None]
"""Takes an evaluation: `epoch`, `loss/…` and `PART.METRIC` to value; also those that an interrupted run had made before."""

_LOGGED = ("config.yaml", "run.json", "metrics.json", "history.jsonl", RECOMMENDER_FILE, ENCODER_FILE)


@dataclass
class Session:
    """A run while it trains; `open_session` opens it."""

    run: RunFolder
    """Its folder."""
    world: World
    """This rank and its peers."""
    tracker: Tracker
    """Where metrics and files are logged."""
    heartbeat: Heartbeat
    """Watches over the ranks."""
    checkpoints: Checkpoints
    """Where it can resume."""
    report: Report | None = None
    """Called with each evaluation, on every rank."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    """Signals that this rank received."""
    meter: Meter = field(default_factory=Meter)
    """Time, items and memory of the epochs."""
    is_finished: bool = False
    """Whether the run is complete."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Write the history and what epochs cost so far; log and report the last line of the history.

        Collective: every rank must call this.

        Args:
            history: One dict per evaluation.
        """
        line = history[-1]
        self.write_efficiency()  # now: a process that resumes after the last epoch trains none
        if self.world.is_first:
            self.run.write_history(history)
        self.tracker.metrics({name: value for name, value in line.items() if name != "epoch"}, line["epoch"])
        self.report_line(line)

    def report_line(self, line: dict[str, Any]) -> None:
        """Report an evaluation.

        Args:
            line: A line of the history.
        """
        if self.report is not None:
            self.report(line)

    def finish(self, record: RunRecord, metrics: Metrics) -> None:
        """Write lineage and metrics of a run with a recommender, which marks it as complete, and print them.

        Collective: every rank must call this.

        Args:
            record: Lineage; its fingerprint and its MLflow run are filled in.
            metrics: Part to metric to value.
        """
        efficiency = self.write_efficiency()
        self.log_result(flatten(metrics) | efficiency, record.parameters, record.kept_epoch or 0)
        if self.world.is_first:
            self.run.finish(record, metrics, self.tracker.run_id)
            print_metrics(metrics)
            print(f"{self.run.folder}: epoch {record.kept_epoch or 0} was kept")
        self.end()

    def write_efficiency(self) -> dict[str, float]:
        """Write what the epochs cost.

        Collective: every rank must call this.

        Returns:
            What `Meter.summary` returned.
        """
        efficiency = self.meter.summary(self.world)
        if self.world.is_first:
            self.run.write_efficiency(efficiency)
        return efficiency

    def log_result(self, metrics: Mapping[str, float], parameters: Mapping[str, int], epoch: int) -> None:
        """Log metrics and parameter counts of a run, before the file is written that marks it as complete.

        Args:
            metrics: Metric to value.
            parameters: Kind to number of parameters.
            epoch: Epoch that was kept.
        """
        counts = {f"parameters/{name}": float(number) for name, number in parameters.items()}
        self.tracker.metrics({**metrics, **counts}, epoch)

    def end(self) -> None:
        """Log the files of a run that is complete."""
        _log_files(self.tracker, self.run)
        self.is_finished = True


def report_complete(run: RunFolder, tracking: TrackingConfig) -> bool:
    """Say that a run has ended, if it has, and tidy up after one that was killed right after that.

    Args:
        run: The run's folder.
        tracking: Settings of its tracker.

    Returns:
        Whether it has ended: there is nothing to do.
    """
    if run.is_complete and is_first_rank():
        run.tidy()
        if is_open(run.folder):
            with Tracker.start(tracking, name=run.folder.name, params={}, tags={}, folder=run.folder) as tracker:
                _log_files(tracker, run)
        print(f"{run.folder} is complete; nothing to do")
    return run.is_complete


def _log_files(tracker: Tracker, run: RunFolder) -> None:
    tracker.artifacts([path for name in _LOGGED if (path := run.folder / name).is_file()])


@contextmanager
def open_session(
    config: Stage1Config | TunesEncoder,
    run: RunFolder,
    world: World,
    tags: Mapping[str, str],
    *,
    parent: str | None = None,
    report: Report | None = None,
) -> Iterator[Session]:
    """Open the session of a run; when the block ends, a finished run needs no checkpoints any more.

    Collective: every rank must call this.

    Args:
        config: Settings of the command.
        run: The run's folder.
        world: This rank and its peers.
        tags: Lineage for the tracker.
        parent: MLflow run that this one is shown under.
        report: Called with each evaluation, on every rank.

    Yields:
        The session.
    """
    if world.is_first:
        run.start()
    barrier()
    checkpoints = Checkpoints(run.folder / CHECKPOINTS, config.keep_checkpoints)
    with _tracker(config, run, world, tags, parent) as tracker, Heartbeat(world, config.timeout) as heartbeat:
        session = Session(run, world, tracker, heartbeat, checkpoints, report)
        yield session
        if not session.is_finished:
            tracker.interrupted()
        elif world.is_first:
            run.tidy()
    barrier()


def _tracker(
    config: Stage1Config | TunesEncoder, run: RunFolder, world: World, tags: Mapping[str, str], parent: str | None
) -> Tracker:
    """The tracker of a run, which logs on the first rank."""
    return Tracker.start(
        config.tracking,
        name=run.folder.name,
        params=flatten(run.settings),
        tags=tags,
        parent=parent,
        folder=run.folder,
        active=world.is_first,
    )
