"""SIGTERM and SIGINT let the current step finish, so that a checkpoint can be written."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Notes SIGTERM and SIGINT while it is open, instead of ending the process; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        # Python lets only the main thread set handlers; elsewhere (Ray workers) signals are left alone.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
