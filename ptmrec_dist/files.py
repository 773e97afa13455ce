"""Atomic writes: files are written to a sibling and renamed, folders staged and swapped in. Also digests of files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptmrec_dist.errors import UserError

UNFINISHED = ".new"
"""Suffix of files that are still being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: a reader finds the old content or the new one, never part of it.

    Args:
        path: File to write.

    Yields:
        A sibling to write to; it is renamed to the file if the block succeeds, and removed if not.
    """
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: File to write.
        text: Its content, written as UTF-8.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Build a folder in a sibling and swap it in.

    Args:
        out: Folder to write; an existing one is replaced only if the block succeeds. A link is followed.

    Yields:
        An empty sibling folder to write into.

    Raises:
        UserError: The folder cannot be made.
    """
    out = out.resolve()
    fresh, old = (out.with_name(f".{out.name}{state}") for state in (UNFINISHED, ".old"))
    shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
    try:
        if old.exists() and not out.exists():  # killed between the two renames below
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


def sha256(path: Path) -> str:
    """Compute the digest of a file.

    Args:
        path: File to read.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
