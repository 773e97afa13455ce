"""Atomic writes: files are written to a sibling and renamed, folders staged and swapped in. Also digests of files.

Records that are damaged all the same, by a power cut or by hand, are refused by their path.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

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


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that a command has written.

    Args:
        path: File to read.
        name: Option that names its folder, for the message: `run`.

    Returns:
        The object.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    return _object(path, name, json.loads)


def read_json_lines(path: Path, name: str) -> list[dict[str, Any]]:
    """Read a JSON object from each line of a file that a command has written.

    Args:
        path: File to read.
        name: Option that names its folder, for the message: `run`.

    Returns:
        The objects.

    Raises:
        UserError: The file cannot be read, or a line is no JSON.
    """
    lines: list[dict[str, Any]] = _parsed(path, name, lambda text: [json.loads(line) for line in text.splitlines()])
    return lines


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """Read a YAML mapping that a command has written.

    Args:
        path: File to read.
        name: Option that names its folder, for the message: `out`.

    Returns:
        The mapping.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    return _object(path, name, yaml.safe_load)


def _object(path: Path, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    content = _parsed(path, name, parse)
    if not isinstance(content, dict):
        raise _damaged(path, name, type(content).__name__)
    return content


def _parsed(path: Path, name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path, name, " ".join(str(error).split())) from error


def _damaged(path: Path, name: str, got: str) -> UserError:
    remedy = "bring the file back, or remove its folder and run its command again"
    return UserError(f"{name}: {path} is damaged (got {got}), expected what was written there; {remedy}")
