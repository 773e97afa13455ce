"""Settings as plain nested values, as YAML and sweeps hold them: merging, dotted keys, and the parser that checks them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from ptmrec_dist.errors import UserError

Settings = TypeVar("Settings")


def from_plain(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Turn nested plain values into settings, by the parser that reads command lines and YAML files.

    Args:
        settings: The dataclass of a command's settings.
        values: Nested values.

    Returns:
        An instance of `settings`.

    Raises:
        UserError: An unknown key, a value of the wrong type, or one that the settings refuse.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(settings, "step")
    try:
        built: Settings = parser.instantiate(parser.parse_object({"step": dict(values)})).step
    except (ArgumentError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return built


def merged(settings: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings.

    Args:
        settings: Nested values.
        special: Nested values that take the place of those.

    Returns:
        Both together.
    """
    both = dict(settings)
    for key, value in special.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested settings.

    Args:
        dotted: `optim.encoder_lr` to value; values may be nested themselves.

    Returns:
        `{"optim": {"encoder_lr": value}}`.
    """
    found: dict[str, Any] = {}
    for key, value in dotted.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        found = merged(found, value)
    return found
