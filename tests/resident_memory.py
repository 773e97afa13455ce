"""How much memory of the whole process a piece of code takes at its peak, libraries in C included."""

import re
from collections.abc import Iterator
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
        before, ended, peaks = _read("RssAnon"), Event(), [0]
    except OSError:
        pytest.skip("this system does not tell a process its memory")

    def watch() -> None:
        while not ended.wait(0.005):
            peaks.append(max(peaks.pop(), _read("RssAnon")))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    grown = peaks[0] - before
    assert grown < limit, f"memory grew by {grown:,} bytes"


def _read(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024
