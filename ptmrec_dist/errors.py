"""The two kinds of errors that are reported in a single line, without a traceback."""

FAULT_CODE = 3
"""Exit code of a process ended by an external fault; a user's mistake is 2."""


_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), 0x2028, 0x2029], " ")
"""Line ends, and what else a terminal would act on: messages quote files that anybody may have written."""


class _OneLine(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(str(message).translate(_CONTROLS))


class UserError(_OneLine, ValueError):
    """A mistake in the input or the settings: exit code 2.

    The message states what was got, what was expected and what to do. Code that uses the package as a library can catch it
    as a `ValueError`.
    """


class Fault(_OneLine, RuntimeError):
    """An external failure during a run: of a rank, the network, a disk, a shard. Exit code 3.

    Files written before stay intact; the same command resumes from the last checkpoint once the cause is removed.
    """
