"""Settings as written in YAML, in the types that the parser takes: `text: title` is a list of one name."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from ptmrec_dist.config.tuning import groups
from ptmrec_dist.errors import UserError

_TEXTS = (str, Path)
"""Types of settings that are written as text, perhaps one that YAML takes for a number: `out: 2024`."""


def as_declared(settings: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write values as their settings are declared: one value or `a,b` as a list, and a number as text where text is meant.

    Args:
        settings: Dataclass of the settings.
        values: What a file holds; keys that are no settings stay, since the parser refuses them.
        prefix: What stands before the names in messages.

    Returns:
        The values.

    Raises:
        UserError: Nothing for a list, or no keys for settings that have some.
    """
    types: dict[str, Any] = {item.name: item.type for item in fields(settings)} | groups(settings)
    found = dict(values)
    for name, value in values.items():
        declared = types.get(str(name).partition(".")[0])
        nested = next((kind for kind in (declared, *get_args(declared)) if _has_fields(kind)), None)
        if nested is not None and "." in str(name):
            inner = str(name).partition(".")[2]
            found[name] = as_declared(nested, {inner: value}, f"{prefix}{name.partition('.')[0]}.")[inner]
        elif nested is not None and isinstance(value, Mapping):
            found[name] = as_declared(nested, value, f"{prefix}{name}.")
        elif nested is not None and not isinstance(value, str | None):
            names = "".join(f"{item.name}, " for item in fields(nested)[:3])
            like = f" ({names}…)" if names else ""
            raise UserError(f"{prefix}{name}: got {value!r}, expected settings by name{like}")
        elif get_origin(declared) is tuple:
            found[name] = _as_list(value, get_args(declared)[0], f"{prefix}{name}")
        elif declared in _TEXTS or {*get_args(declared)} in [{kind, type(None)} for kind in _TEXTS]:
            found[name] = _as_text(value)
    return found


def _has_fields(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _as_list(value: Any, element: Any, name: str) -> list[Any]:
    if value is None:
        raise UserError(f"{name}: got null, expected a list such as [a, b]")
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [_as_text(one) for one in values] if element in _TEXTS else values


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
