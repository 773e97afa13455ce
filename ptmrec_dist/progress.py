"""Progress of long work: a bar on a terminal, and a line a minute where output goes to a file or a pipe."""

import sys
from typing import IO, Any

from tqdm import tqdm

_LOG_INTERVAL = 60.0
"""Seconds before the first line of a log and between two: short work writes none."""
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):  # type: ignore[type-arg]
    """`tqdm` that writes whole lines where standard error is no terminal.

    Args:
        *args: As of `tqdm`.
        **settings: As of `tqdm`. `delay=0` writes the first line of a log at once.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        if not sys.stderr.isatty():
            plain = {"mininterval": _LOG_INTERVAL, "delay": _LOG_INTERVAL, "miniters": 1, "bar_format": _LINE}
            settings = {**plain, "file": _Lines(sys.stderr), **settings}
        super().__init__(*args, **settings)


class _Lines:
    """Text stream to which `tqdm` writes, with a line where it would overwrite the line before."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()
