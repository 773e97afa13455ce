"""Configuration files: YAML that is not trusted."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ptmrec_dist.errors import UserError, on_one_line

_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number, as YAML 1.2 and command lines do; to YAML 1.1 it is text. Refuses repeated names."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} is there twice, from line {node.start_mark.line + 1}; remove one")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Args:
        path: YAML file.

    Returns:
        Nested settings; none for an empty file.

    Raises:
        UserError: The file cannot be read, or holds something else than names with values.
    """
    try:
        found = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"config: cannot read {path} ({on_one_line(error)}); expected settings as YAML in UTF-8"
        ) from error
    if not isinstance(found, dict | None):
        raise UserError(f"config: {path} holds {type(found).__name__}, expected settings, `name: value`")
    _check_values(found, path)
    return found or {}


def _check_values(found: Any, path: Path) -> None:
    """Refuse names that are no text, and aliases (`*name`) by which a few lines stand for any number of values."""
    waiting, count = [found], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        if count > _MOST_VALUES:
            raise UserError(f"config: {path} stands for more than {_MOST_VALUES:,} values, expected fewer")
        if isinstance(value, dict):
            odd = [name for name in value if not isinstance(name, str)]
            if odd:
                raise UserError(f"config: {path} names a setting {odd[0]!r}, expected text; put it in quotes")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
