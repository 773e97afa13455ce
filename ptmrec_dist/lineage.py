"""Lineage of outputs: inputs are compared by fingerprints of their content; paths are hints, since folders may be moved."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptmrec_dist.errors import UserError
from ptmrec_dist.files import UNFINISHED, parse_json, write_atomically

INPUTS_FILE = "inputs.json"
"""In every output that can be resumed: name of each input (`shards`, `features`, `encoder`, `stage1`) to its fingerprint."""
_PATHS = ("path", "model", "image", "text")
_SCHEMES = ("timm:", "hf:", "vlmo:")


def write_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Record the inputs of an output; call this before anything else is written.

    Args:
        folder: Output folder.
        inputs: Name of each input to its fingerprint.
    """
    write_atomically(folder / INPUTS_FILE, json.dumps(dict(inputs), indent=1))


def read_inputs(folder: Path) -> dict[str, str] | None:
    """Read the recorded inputs of an output.

    Args:
        folder: Output folder.

    Returns:
        Name of each input to its fingerprint; None if they were not recorded.
    """
    try:
        inputs = parse_json((folder / INPUTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(inputs, dict) and all(isinstance(fingerprint, str) for fingerprint in inputs.values())
    return inputs if known else None


def is_foreign(out: Path) -> bool:
    """Look whether an output without a record of its settings was written by something else.

    Args:
        out: Output folder.

    Returns:
        Whether there is more than a command leaves that is killed at its start: its inputs, and files that were not finished.
    """
    if not out.is_dir():
        return out.exists()
    return any(path.name != INPUTS_FILE and not path.name.endswith(UNFINISHED) for path in out.iterdir())


def check_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Compare the inputs of an output with those that it was started with.

    Args:
        folder: Output folder of a started command.
        inputs: Name of each input to its current fingerprint.

    Raises:
        UserError: An input differs, or the recorded ones cannot be read.
    """
    before = read_inputs(folder)
    if before is None:
        raise UserError(f"out: {folder} does not record what it was made from (no {INPUTS_FILE}); choose another --out")
    for name in [*inputs, *(before.keys() - inputs.keys())]:
        old, new = before.get(name, "none"), inputs.get(name, "none")
        if old != new:
            raise UserError(
                f"{name}: got {new[:12]}, but {folder} was started with {old[:12]}; give that or choose another --out"
            )


def reference_to(folder: Path, fingerprint: str) -> dict[str, str]:
    """Name an input in a record.

    Args:
        folder: Where it lies now.
        fingerprint: Fingerprint of its content.

    Returns:
        `path`, absolute, and `fingerprint`.
    """
    return {"path": str(folder.resolve()), "fingerprint": fingerprint}


def relative_to(path: str, folder: Path) -> str:
    """Make a path relative to a folder that may be moved together with it.

    Args:
        path: Absolute path.
        folder: Folder of the record that contains the path.

    Returns:
        Relative path.
    """
    return os.path.relpath(path, folder.resolve())


def find(relative: str | None, absolute: str, folder: Path) -> str:
    """Find a recorded path: relative to the record's folder, or else at its original location.

    Args:
        relative: Result of `relative_to`, if the record has it.
        absolute: Path at the time of writing.
        folder: Folder of the record.

    Returns:
        The relative one if it exists, else the absolute one.
    """
    beside = None if relative is None else Path(os.path.normpath(folder.resolve() / relative))
    return str(beside) if beside is not None and beside.exists() else absolute


def split_scheme(source: str) -> tuple[str, str]:
    """Split the name of an encoder.

    Args:
        source: A value of `encoder.model`, `encoder.image` or `encoder.text`.

    Returns:
        `timm:`, `hf:`, `vlmo:` or nothing, and the name or folder.
    """
    for scheme in _SCHEMES:
        if source.startswith(scheme):
            return scheme, source.removeprefix(scheme)
    return "", source


def with_hints(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Add to what a record names how its folders are seen from the record's folder.

    Args:
        made: `path` of an input, or the settings of an encoder.
        folder: Folder of the record.

    Returns:
        The same with `relative`, where it names absolute paths.
    """
    paths = {name: split_scheme(value)[1] for name, value in made.items() if name in _PATHS and value is not None}
    hints = {name: relative_to(path, folder) for name, path in paths.items() if Path(path).is_absolute()}
    return {**made, "relative": hints} if hints else dict(made)


def without_hints(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve what `with_hints` added: every path is where the files are found now, or where they once were.

    Args:
        made: What a record names.
        folder: Folder of the record.

    Returns:
        The same without `relative`.
    """
    resolved = dict(made)
    hints = resolved.pop("relative", None) or {}
    if isinstance(hints, str):  # written by version 0.1
        hints = {"path" if "path" in made else "model": hints}
    for name, relative in hints.items():
        scheme, path = split_scheme(resolved[name])
        resolved[name] = scheme + find(relative, path, folder)
    return resolved
