"""Atomic writes: files are written to a sibling and renamed, folders staged and swapped in. Also digests of files.

Records that are damaged all the same, by a power cut or by hand, are refused by their path.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ptmrec_dist.errors import UserError, on_one_line

Record = TypeVar("Record")

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
    refuse_file_above(out)
    out = out.resolve()
    fresh, old = (out.with_name(f".{out.name}{state}") for state in (UNFINISHED, ".old"))
    shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
    try:
        if old.exists() and not out.exists():  # killed between the two renames below
            os.replace(old, out)
        fresh.mkdir(parents=True)
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        yield fresh
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(fresh, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def refuse_file_above(out: Path, name: str = "out") -> None:
    """Refuse an output below a file.

    Args:
        out: File or folder to write.
        name: Option that names it.

    Raises:
        UserError: One of the folders that it would be in is a file.
    """
    for path in out.resolve().parents:
        if path.exists() and not path.is_dir():
            raise UserError(f"{name}: got {out}, but {path} is a file, expected a folder; choose another --{name}")


def unwritable(out: Path, error: OSError) -> UserError:
    """Word what the system said when the folder of an output was to be made or written to.

    Args:
        out: File or folder.
        error: The system's error.

    Returns:
        The error to raise.
    """
    return UserError(f"out: cannot write to {out.resolve().parent} ({error.strerror}); choose another --out")


def link_or_copy(file: Path, name: Path) -> None:
    """Give a file a second name, or where the file system has no hard links copy it.

    Args:
        file: The file; replacing it later leaves the second name with what it has now.
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


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that is not trusted.

    Args:
        text: JSON.

    Returns:
        Its value.

    Raises:
        ValueError: It is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def typed(kind: type[Record], values: Any) -> Record:
    """Build a record from parsed JSON, field by field of the declared type.

    Args:
        kind: A dataclass.
        values: Parsed JSON.

    Returns:
        The record.

    Raises:
        ValueError: No object, an unknown or missing field, or one of another type; says which, on one line.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(values, dict):
        raise ValueError(f"got {type(values).__name__}, expected an object")
    others = sorted(values.keys() - {item.name for item in fields(kind)})  # type: ignore[arg-type]
    if others:
        raise ValueError(f"got an unknown field {others[0]!r}")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(" ".join(f"{where}: {first['msg']}".split())) from error


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
    return _object(path, name, parse_json)


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
    lines: list[dict[str, Any]] = _parsed(path, name, lambda text: [parse_json(line) for line in text.splitlines()])
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
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _damaged(path, name, on_one_line(error)) from error


def _damaged(path: Path, name: str, got: str) -> UserError:
    remedy = "bring the file back, or remove its folder and run its command again"
    return UserError(f"{name}: {path} is damaged (got {got}), expected what was written there; {remedy}")
