"""Locates the first malformed line of a table. A slow second pass, run only after reading has failed."""

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ptmrec_dist.data.formats import Format, open_bytes

_LONGEST = 80


def explain(path: Path, form: Format) -> str | None:
    """Find the first line that keeps a file from being read.

    Args:
        path: The file.
        form: The format it was read in.

    Returns:
        The line's number and what is wrong with it, and what to do; None where every line is well-formed.

    Raises:
        OSError: The file cannot be read or decompressed.
    """
    if form.kind == "parquet":
        return None
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                encoding = "UTF-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
                return (
                    f"line {number} has byte 0x{line[error.start]:02x} at position {error.start}, which is not UTF-8: "
                    f"{_shown(line.decode('latin-1'))}; convert the file, for example by iconv -f {encoding} -t UTF-8"
                )
    with open_bytes(path) as file:
        lines = (line.decode().removeprefix("\ufeff") for line in file)
        return _not_json(lines) if form.kind == "json" else _too_wide(lines, form)


def _not_json(lines: Iterator[str]) -> str | None:
    first = next(lines, "")
    if first.lstrip().startswith("[") and not _is_json(first):  # one array over many lines
        try:
            json.loads(first + "".join(lines))
        except (ValueError, RecursionError) as error:
            return f"it is not a JSON array: {error}; fix it, or write one object per line"
        return None
    for number, line in enumerate(chain([first], lines), start=1):
        try:
            value = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            python = "; it is a Python literal, not JSON" if line.startswith("{'") else ""
            return f"line {number} is not a JSON object: {_shown(line)}{python}; fix or remove it"
        if not isinstance(value, dict):
            return f"line {number} is not a JSON object: {_shown(line)}; expected one object per line"
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _too_wide(lines: Iterator[str], form: Format) -> str | None:
    if len(form.separator) == 1:
        rows: Iterator[list[str]] = (
            csv.reader(lines, delimiter=form.separator)
            if form.quoted
            else csv.reader(lines, delimiter=form.separator, quoting=csv.QUOTE_NONE)
        )
    else:
        rows = (line.rstrip("\r\n").split(form.separator) for line in lines)
    width = len(next(rows, []))
    for number, row in enumerate(rows, start=1 if form.header else 2):
        if len(row) > width:
            return (
                f"row {number} has {len(row)} columns, the first line {width}: {_shown(form.separator.join(row))}; quote "
                f"values that hold {form.separator!r}, or give another --separator"
            )
    return None


def _shown(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…")
