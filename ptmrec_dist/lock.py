"""Exclusive access to an output: a lock file beside it names the host and the process that hold it.

Ownership is determined by the content of the file, not by a kernel lock: child processes forked by a killed process would
inherit and keep the latter, and network file systems implement it in different ways. A lock of a process of this host that has
ended is stale. Whether a process of another host still runs cannot be determined.
"""

import fcntl
import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ptmrec_dist.errors import UserError
from ptmrec_dist.files import parse_json, refuse_file_above, typed, unwritable
from ptmrec_dist.processes import is_first_rank

COVERED_BY = "PTMREC_LOCKED"
"""Environment variable: an output folder locked by the parent process. Outputs inside need no lock of their own, which another
node could not take over if this one is lost."""

_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    host: str
    """Name of the machine."""
    pid: int
    """Process id there."""
    started: str | None
    """Boot id and clock tick at which that process started, since process ids are reused. None if unavailable."""
    since: str
    """Local time at which the lock was taken."""

    @classmethod
    def this_process(cls) -> "Owner":
        """Describe the calling process.

        Returns:
            The owner of a lock that is taken now.
        """
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _start_of(pid), datetime.now().isoformat(" ", "seconds"))

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended; always False for a process of another host."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it runs, as another user
        started = _start_of(self.pid)
        return started is not None and started != self.started


def exclusive_out(command: Callable[[_Settings], None]) -> Callable[[_Settings], None]:
    """Keep other commands out of the command's `--out` while it runs.

    Rank 0 holds the lock for all ranks. Settings without an `out` need none.

    Args:
        command: Takes settings, of which `out` is the file or folder that is written.

    Returns:
        The command, which raises a `UserError` if another process is writing there.
    """

    @functools.wraps(command)
    def alone(config: Any) -> None:
        if config.out is None or not is_first_rank() or _is_covered(config.out):
            command(config)
            return
        with locked(config.out):
            command(config)

    return alone


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of an output while the block runs.

    Args:
        out: File or folder that is written; a link is followed.

    Yields:
        Nothing.

    Raises:
        UserError: Another process holds it, or the lock cannot be written.
    """
    refuse_file_above(out)
    path = lock_file(out)
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    owner = Owner.this_process()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent):
            _remove_unfinished(path)
            _remove_stale(path, out)
            _create(path, owner, out)
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if _owner_of(path) == owner:
                path.unlink()
            for folder in missing:  # a refused command leaves nothing; non-empty folders stay
                folder.rmdir()


def lock_file(out: Path) -> Path:
    """Get the lock file of an output.

    Args:
        out: File or folder that is written.

    Returns:
        The lock file, beside it.
    """
    resolved = out.resolve()
    return resolved.with_name(f".{resolved.name}.lock")


def _is_covered(out: Path) -> bool:
    covered = os.environ.get(COVERED_BY)
    return covered is not None and out.resolve().is_relative_to(covered)


def _remove_stale(path: Path, out: Path) -> None:
    """Remove the lock of a process that has ended; refuse if it may still run."""
    if not path.exists():
        return
    owner = _owner_of(path)
    if owner is None:
        raise UserError(f"out: {path} is not readable as a lock; delete it if no other command writes {out}")
    if not owner.is_gone:
        raise _refusal(owner, path, out)
    path.unlink()


def _remove_unfinished(path: Path) -> None:
    """Remove what processes of this host left that were killed while they took the lock."""
    begun = f"{path.name}.{socket.gethostname()}."
    for left in path.parent.iterdir():
        pid = left.name.removeprefix(begun)
        if left.name.startswith(begun) and pid.isdecimal() and _start_of(int(pid)) in (None, "ended"):
            left.unlink(missing_ok=True)


def _create(path: Path, owner: Owner, out: Path) -> None:
    """Write the lock atomically, and only if there is none."""
    fresh = path.with_name(f"{path.name}.{owner.host}.{owner.pid}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)  # fails if the file exists, also where several hosts share the folder
        except FileExistsError:
            _remove_stale(path, out)  # another host was faster: this raises
            raise
        except OSError:
            os.replace(fresh, path)  # a file system without hard links
    finally:
        fresh.unlink(missing_ok=True)


def _refusal(owner: Owner, path: Path, out: Path) -> UserError:
    here = owner.host == socket.gethostname()
    remedy = "wait until it ends or choose another --out"
    if not here:
        remedy += f"; if it no longer runs there, delete {path}"
    return UserError(f"out: {out} is in use by process {owner.pid} on {owner.host} since {owner.since}; {remedy}")


def _owner_of(path: Path) -> Owner | None:
    try:
        return typed(Owner, parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this host at a time work in a folder; the others wait. The end of the process ends it, too.

    Args:
        folder: Folder that exists.

    Yields:
        Nothing.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without it: what remains is a race of milliseconds over a stale lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start_of(pid: int) -> str | None:
    """Boot and clock tick (field 22 of proc_pid_stat(5)) at which a process started; `ended` for a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return "ended" if state in "ZX" else f"{boot} {fields[18]}"
