"""Generated cases of hostile input, and what must hold for each: one line, no hang, no file outside, bounded memory."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ptmrec_dist.errors import Fault, UserError
from tests.resident_memory import memory_below

Case = TypeVar("Case")
_CPU_SECONDS = 10
"""Most time of the processor for a case."""
_SECONDS = 120
"""Most time for a case that waits, on a machine that does other things, too."""
MEMORY = 256 * 2**20
"""Most bytes by which a case may make the process grow."""


def for_all(strategy: st.SearchStrategy[Case], check: Callable[[Case], None], cases: int) -> None:
    """Check generated cases, each within bounds of time and memory; the few of every run are always the same.

    Args:
        strategy: Generates them.
        check: Raises for a case that fails.
        cases: How many.
    """
    begun, found = time.process_time(), _working_directory()

    @settings(
        max_examples=cases,
        derandomize=cases < 100,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(case: Case) -> None:
        with memory_below(MEMORY), _no_hang():
            check(case)

    every()
    assert _working_directory() == found  # nobody writes to it
    print(f"{cases:,} cases in {time.process_time() - begun:.0f} s of one processor")


def _working_directory() -> list[str]:
    """What it holds, other than the cache that the generator of cases makes when it first runs."""
    return sorted(path.name for path in Path.cwd().iterdir() if path.name != ".hypothesis")


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """What the block raises, if anything, is an error of ours on one line."""
    try:
        yield
    except (UserError, Fault) as error:
        message = str(error)
    else:
        return
    assert len(message.splitlines()) == 1, message


@contextmanager
def nothing_else_in(folder: Path) -> Iterator[None]:
    """The block leaves a folder's entries as they were."""
    before = sorted(path.name for path in folder.iterdir())
    yield
    assert sorted(path.name for path in folder.iterdir()) == before


def damaged(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes of real files with some edits: cut, overwritten, repeated, with bytes put in; or bytes of nothing."""
    edit = st.tuples(
        st.sampled_from(["cut", "overwrite", "insert", "repeat", "drop"]),
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        ),
    )
    edited = st.builds(_edited, st.sampled_from(originals), st.lists(edit, min_size=1, max_size=4))
    return st.one_of(edited, edited, edited, st.binary(max_size=64))


def _edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, fraction, piece in edits:
        at = int(fraction * len(data))
        data = {
            "cut": data[:at],
            "overwrite": data[:at] + piece + data[at + len(piece) :],
            "insert": data[:at] + piece + data[at:],
            "repeat": data[:at] + data[max(0, at - 200) :],
            "drop": data[:at] + data[at + 16 :],
        }[kind]
    return data


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["../../x", "/etc/passwd", "", "nan", "1e999", "a/b", "\0"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=6,
)
"""Any JSON value, also numbers and texts that programs stumble over."""


def with_other_values(document: object) -> st.SearchStrategy[object]:
    """A JSON document with one to three of its values replaced, removed or added, at any depth."""
    paths = list(_paths(document))
    change = st.tuples(st.sampled_from(paths), st.sampled_from(["replace", "replace", "remove", "add"]), JSON)
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _changed(document, changes))


def _paths(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from _paths(inner, (*path, number))


def _changed(document: object, changes: list[tuple[tuple[object, ...], str, object]]) -> object:
    for path, kind, value in changes:
        document = _with(document, path, kind, value)
    return document


def _with(document: object, path: tuple[object, ...], kind: str, value: object) -> object:
    if not path:
        if kind == "add" and isinstance(document, dict):
            return document | {"unexpected": value}
        return value
    key, *rest = path
    if isinstance(document, dict) and key in document:
        if kind == "remove" and not rest:
            return {name: inner for name, inner in document.items() if name != key}
        return document | {key: _with(document[key], tuple(rest), kind, value)}
    if isinstance(document, list) and isinstance(key, int) and key < len(document):
        changed = list(document)
        changed[key] = _with(document[key], tuple(rest), kind, value)
        return changed
    return document  # an earlier change removed it


@contextmanager
def _no_hang() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {_CPU_SECONDS} s of work or {_SECONDS} s of waiting")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, _CPU_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, _SECONDS)}
    before = {number: signal.signal(number, hang) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
