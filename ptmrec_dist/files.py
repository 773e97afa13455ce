"""Files that readers find whole or not at all: written aside and renamed, folders built aside and swapped in, digests."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptmrec_dist.errors import UserError

UNFINISHED = ".new"
"""End of the name of what is still being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one move: a reader finds the old one or the new one, never half of it.

    Args:
        path: File to write.

    Yields:
        A sibling to write to; it takes the file's name if the block ends well, and is removed if not.
    """
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one move.

    Args:
        path: File to write.
        text: Its content, written as UTF-8.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Build a folder beside the one that it is to become.

    Args:
        out: Folder to write; what is there is replaced only if the block ends well. A link is followed.

    Yields:
        An empty sibling folder to write into.

    Raises:
        UserError: The folder cannot be made.
    """
    out = out.resolve()
    fresh, old = (out.with_name(f".{out.name}{state}") for state in (UNFINISHED, ".old"))
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    try:
        if old.exists() and not out.exists():  # killed between the two moves below
            os.replace(old, out)
        fresh.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out.parent} ({error.strerror}); choose another --out") from error
    try:
        yield fresh
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(fresh, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def link_or_copy(file: Path, name: Path) -> None:
    """Give a file a second name, or where the file system has no hard links copy it.

    Args:
        file: The file; whoever replaces it later leaves the second name with what it has now.
        name: The second name; nothing is there yet.
    """
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def sha256(path: Path) -> str:
    """Compute the digest of a file.

    Args:
        path: File to read.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
