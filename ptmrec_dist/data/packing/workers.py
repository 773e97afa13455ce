"""Worker processes of `ptmrec pack`: those of this machine, or of all ranks, behind one `map`.

With several ranks, only the first reads the tables and filters. It distributes tasks round-robin (rank r of W gets tasks r,
r + W, ...) and collects the results in order, so that the output does not depend on the number of ranks. The other ranks
only run tasks. Tasks contain paths, not file contents: all ranks see the same folder.
"""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ptmrec_dist.errors import Fault, FoundByFirst, UserError, fault_of, first_line
from ptmrec_dist.hardware import cores
from ptmrec_dist.processes import DEFERRED, deferring_signals, end_with_parent

_Result = TypeVar("_Result")
_TASKS_PER_PROCESS = 16
"""Tasks per process and round: few enough to show progress and bound memory, enough to amortise the wait at its end."""


class Pool(Protocol):
    """Common interface of `ProcessPoolExecutor` and `RankPool`."""

    def map(self, function: Callable[..., _Result], /, *columns: Iterable[Any]) -> Iterator[_Result]:
        """Call a function in other processes.

        Args:
            function: A module-level function.
            *columns: First arguments, second arguments, and so on.

        Returns:
            What each call returned, in order.
        """


@contextmanager
def open_workers(
    processes: int | None, timeout: float, start: Callable[..., None], *arguments: Any
) -> Iterator["Pool | RankPool"]:
    """Open the worker processes of this rank and, on the first of several ranks, of all ranks.

    Collective: every rank must call this; the first then works with the pool, the others `serve`.

    Args:
        processes: Processes of each rank; by default as many as this process may use processors, divided among the machine's
            ranks.
        timeout: Seconds that ranks wait for each other.
        start: Called in each process before its first task.
        *arguments: Its arguments.

    Yields:
        The pool; a `RankPool` where there are several ranks.

    Raises:
        Fault: One of this rank's processes was killed.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", ranks)))
    processes = processes or max(1, cores() // neighbours)
    own = _Processes(
        processes,
        mp_context=multiprocessing.get_context("spawn"),  # polars has threads, which do not survive a fork
        initializer=_start_process,
        initargs=(start, *arguments),
    )
    try:
        with RankPool(own, processes, timeout) if ranks > 1 else nullcontext(own) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise Fault(
            "a worker process was killed, perhaps because memory ran out; run again with fewer --workers"
        ) from error
    finally:
        own.shutdown(cancel_futures=True)


class RankPool:
    """The worker processes of all ranks.

    Collective: every rank must make one.

    Args:
        own: This rank's processes.
        processes: Their number.
        timeout: Seconds that ranks wait for each other.
    """

    def __init__(self, own: Executor, processes: int, timeout: float) -> None:
        import torch.distributed as dist  # imported here: a single process packs without torch

        from ptmrec_dist.distributed import join_world

        self._own, self._processes, self._dist = own, processes, dist
        self._world = join_world("cpu", timeout)

    @property
    def serves(self) -> bool:
        """Whether this rank only runs tasks of the first."""
        return not self._world.is_first

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After any other error the ranks may be in different collectives: they see this rank's connection close.
        if not self.serves and (error is None or isinstance(error, UserError)):
            self._scatter([error is None] * self._world.size)

    def map(self, function: Callable[..., _Result], /, *columns: Iterable[Any]) -> Iterator[_Result]:
        """Call a function in the processes of all ranks; for the first rank.

        Args:
            function: A module-level function.
            *columns: First arguments, second arguments, and so on.

        Yields:
            What each call returned, in order.

        Raises:
            Fault: A call failed on some rank, or a rank was lost.
        """
        size = self._world.size
        tasks = zip(*columns, strict=False)
        while batch := list(itertools.islice(tasks, size * self._processes * _TASKS_PER_PROCESS)):
            self._scatter([(function, batch[rank::size]) for rank in range(size)])
            answers = self._answer(function, batch[::size])
            for rank, (_, problem) in enumerate(answers):
                if problem:
                    raise Fault(f"rank {rank}: {problem}; --out must be on a file system that all ranks see")
            for index in range(len(batch)):
                yield answers[index % size][0][index // size]

    def serve(self) -> None:
        """Run the tasks that the first rank sends, until it has finished; for the other ranks.

        Raises:
            FoundByFirst: The first rank found a mistake in the input, and reports it.
            Fault: A rank was lost.
        """
        while isinstance(message := self._scatter(None), tuple):
            self._answer(*message)
        if not message:
            raise FoundByFirst("the first rank found a mistake in the input")

    def _scatter(self, tasks: list[Any] | None) -> Any:
        """Send each rank its tasks, or None when there are no more."""
        received: list[Any] = [None]
        self._run_collective(lambda: self._dist.scatter_object_list(received, tasks))
        return received[0]

    def _answer(self, function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> list[tuple[list[Any], str]]:
        """Do this rank's tasks; on the first rank, collect every rank's results, or what went wrong there."""
        try:
            answer = (list(self._own.map(function, *zip(*tasks, strict=True))) if tasks else [], "")
        except OSError as error:
            answer = ([], str(fault_of(error)))
        except Exception as error:  # sent to the first rank, which stops all
            answer = ([], f"{type(error).__name__}: {error}")
        answers: list[Any] = [None] * self._world.size
        self._run_collective(lambda: self._dist.gather_object(answer, None if self.serves else answers))
        return answers

    def _run_collective(self, collective: Callable[[], None]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise Fault(
                f"lost the connection to the other ranks while packing ({first_line(error)}); run the same command again"
            ) from error


class _Processes(ProcessPoolExecutor):
    """Starts its processes where no signal reaches them, nor this one while it starts them."""

    def submit(self, function: Callable[..., _Result], /, *arguments: Any, **options: Any) -> Future[_Result]:
        """Schedule a call, and start a process for it where none is idle.

        Args:
            function: A module-level function.
            *arguments: Its arguments.
            **options: Its keyword arguments.

        Returns:
            What will hold its result.
        """
        with deferring_signals():
            return super().submit(function, *arguments, **options)


def _start_process(start: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFERRED)
    end_with_parent()
    start(*arguments)
