"""Locates the first malformed line of a table. A slow second pass, run only after reading has failed."""

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ptmrec_dist.data.tables.compression import open_bytes
from ptmrec_dist.data.tables.formats import Format
from ptmrec_dist.data.tables.python_literals import loads
from ptmrec_dist.data.tables.text_rows import records

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
        number, line = 0, b""
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"line {number} has byte 0x{line[error.start]:02x} at position {error.start}, which is not UTF-8: "
                    f"{_shown(line.decode('latin-1'))}; convert the file, for example by iconv -f LATIN1 -t UTF-8"
                )
    if number == 1 and b"\r" in line.strip():
        return "its lines end in carriage returns alone; convert the file, for example by tr '\\r' '\\n'"
    with open_bytes(path) as file:
        lines = (line.decode().removeprefix("\ufeff") for line in file)
        return _not_json(lines) if form.kind == "json" else _not_rows(lines, form)


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
            value = loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            return f"line {number} is not a JSON object: {_shown(line)}; fix or remove it"
        if not isinstance(value, dict):
            return f"line {number} is not a JSON object: {_shown(line)}; expected one object per line"
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _not_rows(lines: Iterator[str], form: Format) -> str | None:
    divided = (line.rstrip("\r\n").split(form.separator) for line in lines)
    rows = records(lines, form) if len(form.separator) == 1 else divided
    width, number = 0, 0 if form.header else 1  # the row that is read next
    try:
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                return (
                    f"row {number} has {len(row)} columns, the first line {width}: {_shown(form.separator.join(row))}; "
                    f"quote values that hold {form.separator!r}, or give another --separator"
                )
            number += 1
    except csv.Error as error:
        return f"row {number} has a quote that does not end its value ({error}); write quotes inside of quoted values twice"
    return None


def _shown(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…")
