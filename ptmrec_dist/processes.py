"""What a process is among others: a rank of several, a child that must end with its parent; and how it ends in order."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DEFERRED = frozenset((signal.SIGINT, signal.SIGTERM))
"""Signals that `deferring_signals` defers."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it had begun to write is removed, its lock is released."""


@contextmanager
def raising_on_sigterm(error: type[BaseException], *arguments: object) -> Iterator[None]:
    """Make SIGTERM raise an error while the block runs, where nothing else handles it: its default leaves files behind.

    A second SIGTERM ends the process at once.

    Args:
        error: Type of the error.
        *arguments: What it is made with.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise error(*arguments)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def deferring_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block ends; for the start of a process, which is no use half-done.

    Processes and threads started in the block inherit that they wait, until they unblock them: an interpreter that is still
    starting would print a traceback.

    Yields:
        Nothing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_first_rank() -> bool:
    """Return whether this process is the first rank, or the only one; known before the ranks are connected.

    Returns:
        Whether it is, by the environment variable that launchers set.
    """
    return os.environ.get("RANK", "0") == "0"


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process as soon as the one that started it through `multiprocessing` has ended, even by SIGKILL.

    Args:
        by: Signal that this process gets; SIGTERM where it has to end processes of its own.
    """
    threading.Thread(target=_wait_for_parent, args=(by,), daemon=True).start()


def start_loader(worker: int = 0) -> None:
    """Ignore SIGINT and SIGTERM in this process, which loads data, end it with its parent, and share the parent's memory.

    Terminals and schedulers send signals to all processes at once; the parent needs its loaders to finish the step that it is
    in, and ends them itself. Those of a parent that was killed see it by themselves only where it forked them. Memory is shared
    until one of both writes to it, as Python's garbage collector does in every object that it visits.

    Args:
        worker: Number of the process, for `DataLoader(worker_init_fn=...)`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    end_with_parent()


def _wait_for_parent(by: signal.Signals) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), by)
