"""Child processes that end with their parent: one that outlives it would write into the next attempt."""

import multiprocessing
import os
import signal
import threading


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process as soon as the one that started it through `multiprocessing` has ended, even by SIGKILL.

    Args:
        by: Signal that this process gets; SIGTERM where it has to end processes of its own.
    """
    threading.Thread(target=_wait_for_parent, args=(by,), daemon=True).start()


def _wait_for_parent(by: signal.Signals) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), by)
