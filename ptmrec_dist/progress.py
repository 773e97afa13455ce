"""Progress of long work: a bar on a terminal, and a line a minute where output goes to a file or a pipe."""

import sys
import time
from typing import IO, Any, ClassVar

from tqdm import tqdm

_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):  # type: ignore[type-arg]
    """`tqdm` that writes whole lines where standard error is no terminal.

    Args:
        *args: As of `tqdm`.
        every: Seconds from the last line of any bar to one of this, in a log; work that is shorter may leave none.
        **settings: As of `tqdm`.
    """

    def __init__(self, *args: Any, every: float = 60.0, **settings: Any) -> None:
        if not sys.stderr.isatty():
            plain = {"mininterval": min(every, 1.0), "bar_format": _LINE, "file": _Lines(sys.stderr, every)}
            # A second bar is not written below the first: only a terminal moves its cursor back up.
            settings = plain | settings | {"position": 0}
        super().__init__(*args, **settings)

    @staticmethod
    def line(text: str) -> None:
        """Print a line beside all bars, at once, also to a file.

        Args:
            text: The line.
        """
        tqdm.write(text)
        sys.stdout.flush()


class _Lines:
    """Text stream to which `tqdm` writes, with a line now and then where it would overwrite the line before."""

    last: ClassVar[float] = time.monotonic()

    def __init__(self, stream: IO[str], every: float) -> None:
        self.stream, self.every = stream, every

    def write(self, text: str) -> None:
        now = time.monotonic()
        if (line := text.strip()) and now >= _Lines.last + self.every:
            _Lines.last = now
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()
