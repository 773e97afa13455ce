"""How much memory of the whole process a piece of code takes at its peak, libraries in C included."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

_PROCESS = Path("/proc/self")


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail where the block makes the process grow by this many bytes; skip where the system does not say."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak counts from here
        before = _read("VmRSS")
    except OSError:
        pytest.skip("this system does not tell a process its peak memory")
    yield
    grown = _read("VmHWM") - before
    assert grown < limit, f"memory grew by {grown:,} bytes"


@contextmanager
def anonymous_memory_below(limit: int) -> Iterator[None]:
    """The same without pages of files, which the system may drop; looks every few milliseconds."""
    try:
        before = _read("RssAnon")
    except OSError:
        pytest.skip("this system does not tell a process its memory")
    with peak_of(lambda: _read("RssAnon") - before) as peak:
        yield
    assert peak[0] < limit, f"memory grew by {peak[0]:,} bytes"


@contextmanager
def peak_of(look: Callable[[], int]) -> Iterator[list[int]]:
    """Look at a number every few milliseconds; the list holds the largest one seen."""
    peak, ended = [0], Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], look())

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _read(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024
