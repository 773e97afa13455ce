"""The two kinds of errors that are reported in a single line, without a traceback."""

FAULT_CODE = 3
"""Exit code of a process ended by an external fault; a user's mistake is 2."""


class UserError(ValueError):
    """A mistake in the input or the settings: exit code 2.

    The message states what was got, what was expected and what to do. Code that uses the package as a library can catch it
    as a `ValueError`.
    """


class Fault(RuntimeError):
    """An external failure during a run: of a rank, the network, a disk, a shard. Exit code 3.

    Files written before stay intact; the same command resumes from the last checkpoint once the cause is removed.
    """
