"""What this process is among others: a rank that a launcher started, or a child that must end with its parent.

One that outlives its parent would write into the next attempt.
"""

import multiprocessing
import os
import signal
import threading


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


def leave_signals_to_parent(worker: int = 0) -> None:
    """Ignore SIGINT and SIGTERM in this process.

    Terminals and schedulers send them to all processes at once; the parent needs its workers to finish the step that it is in,
    and ends them itself.

    Args:
        worker: Number of a loader's worker, for `DataLoader(worker_init_fn=...)`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _wait_for_parent(by: signal.Signals) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), by)
