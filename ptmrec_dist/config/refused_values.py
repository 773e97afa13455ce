"""Values that no setting takes: null, an empty path, and numbers that are not finite or beyond 64 bits."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ptmrec_dist.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace

_LARGEST = 2**63 - 1
NO_PATH = "not the text of a path:"
"""What the parser's message about a value that is no path contains, before the value."""


def path_of(text: Any) -> Path:
    """Turn text into a path.

    Args:
        text: As written, perhaps empty where a variable of a shell was not set, or something else than text.

    Returns:
        The path.

    Raises:
        ValueError: It is no text, or empty: to `Path` that is the working directory, which nobody named.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(f"{NO_PATH} {text!r}")
    return Path(text)


def refuse_odd_values(kinds: Mapping[str, Any], values: "Namespace", prefix: str = "") -> None:
    """Refuse what the parser takes for a value of any setting, or of any that is a number.

    Args:
        kinds: Name of each setting to its type.
        values: What the parser read.
        prefix: What stands before the names in messages.

    Raises:
        UserError: Null (in YAML an empty value) where it is no value of the setting, or a number that is not finite or
            takes more than 64 bits.
    """
    for name, kind in kinds.items():
        value, choices = values.get(name), get_args(kind)
        if value is None and name in values and not {None, type(None)} & {*choices}:
            raise UserError(f"{prefix}{name}: got null, expected a value; leave the setting out for its default")
        for number in value if isinstance(value, list | tuple) else [value]:
            _check_number(number, f"{prefix}{name}")
        for part in (kind, *choices):
            if is_dataclass(part) and isinstance(part, type) and hasattr(value, "as_dict"):
                refuse_odd_values({item.name: item.type for item in fields(part)}, value, f"{prefix}{name}.")


def _check_number(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: got {value}, expected a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"{name}: got {value}, expected at most {_LARGEST}")
