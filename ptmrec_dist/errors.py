"""The two kinds of errors that are reported in a single line, without a traceback, and what they quote of others."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

FAULT_CODE = 3
"""Exit code of a process ended by an external fault; a user's mistake is 2."""

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow access to it"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk"),
}
"""What a user can do about errors of the system, by their number."""

_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), 0x2028, 0x2029], " ")
"""Line ends, and what else a terminal would act on: messages quote files that are not trusted."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for libraries that add a stack trace below it.

    Args:
        error: Any error.

    Returns:
        At most 200 characters; the type of the error where it has no message.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def on_one_line(error: BaseException) -> str:
    """Return the whole message of an error with its lines joined, for libraries that divide a sentence.

    Args:
        error: Any error.

    Returns:
        Words separated by single blanks; the type of the error where it has no message.
    """
    if isinstance(error, KeyError):
        return f"no {error}"  # its message is the key alone
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had, on the host or on a GPU.

    Args:
        error: Any error. PyTorch's allocator on the host raises a plain `RuntimeError`; that on a GPU has a type of its own,
            which is compared by name, since importing PyTorch takes seconds.

    Returns:
        Whether it does.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & names) or "DefaultCPUAllocator" in str(error)


def in_brief(error: BaseException) -> str:
    """Return the start of an error's message with its lines joined, for libraries whose messages are pages long.

    Args:
        error: Any error.

    Returns:
        At most 300 characters; the type of the error where it has no message.
    """
    return on_one_line(error)[:300]


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what an unknown name may have been meant for.

    Args:
        name: What was got.
        known: Names that there are.

    Returns:
        End of a message; empty where no name is like it.
    """
    return "".join(f"; the nearest is {match}" for match in get_close_matches(name, known, n=1))


class _OneLine(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(str(message).translate(_CONTROLS))


class UserError(_OneLine, ValueError):
    """A mistake in the input or the settings: exit code 2.

    The message states what was got, what was expected and what to do. Code that uses the package as a library can catch it
    as a `ValueError`.
    """


class FoundByFirst(UserError):
    """A mistake that the first rank has found, and reports for all."""


class Fault(_OneLine, RuntimeError):
    """An external failure during a run: of a rank, the network, a disk, a shard. Exit code 3.

    Files written before stay intact; the same command resumes from the last checkpoint once the cause is removed.
    """


def fault_of(error: OSError, task: str | None = None) -> Fault:
    """Describe an error of the system: the file, where the error names one, the reason, and what to do about it.

    Args:
        error: The error.
        task: What was being done: a write to a full disk names no file.

    Returns:
        The fault to raise or to report.
    """
    remedy = REMEDIES.get(error.errno or 0, "remove the cause")
    return Fault(f"{task}: " * (task is not None) + f"{error}; {remedy} and run the same command again")
