"""What the tables of recommenders and of tuning methods have in common: rows, and hyper-parameters with their ranges."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ptmrec_dist.config.common import require
from ptmrec_dist.errors import UserError


def bounded(default: Any, low: float, high: float | None = None, *, below: float | None = None) -> Any:
    """Declare a number with its range.

    Args:
        default: Default value.
        low: Smallest value.
        high: Largest value; by default unbounded.
        below: Exclusive upper bound; by default none.

    Returns:
        A dataclass field; `Hyperparameters` checks the range.
    """
    expected = f"{low:g} or more"
    if high is not None:
        expected = f"a number in [{low:g}, {high:g}]"
    if below is not None:
        expected = f"a number in [{low:g}, {below:g})"
    metadata = {"low": low, "high": high, "below": below, "expected": expected}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyper-parameters of a row."""

    @property
    def group(self) -> str:
        """Prefix of their names on the command line."""
        return "model"

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for item in fields(self):
            value, given = getattr(self, item.name), item.metadata
            if get_origin(kinds[item.name]) is Literal:
                choices = get_args(kinds[item.name])
                require(value in choices, f"{self.group}.{item.name}", value, f"one of {', '.join(choices)}")
            if not given or (value is None and item.default is None):
                continue
            low, high, below = given["low"], given["high"], given["below"]
            inside = low <= value and (high is None or value <= high) and (below is None or value < below)
            require(inside, f"{self.group}.{item.name}", value, given["expected"])


@dataclass(frozen=True, kw_only=True)
class RecommenderConfig(Hyperparameters):
    """Hyper-parameters of a recommender."""


@dataclass(frozen=True)
class Entry:
    """A row of a table."""

    config: type[Hyperparameters]
    """Hyper-parameters with their defaults."""
    path: str
    """`module:class` that takes them; imported when it is needed, because importing its libraries takes seconds."""

    def load(self) -> Any:
        """Import the class.

        Returns:
            The class.
        """
        module, name = self.path.split(":")
        return getattr(importlib.import_module(module), name)


Row = TypeVar("Row", bound=Entry)


def entry_of(table: Mapping[str, Row], setting: str, name: str) -> Row:
    """Find a row by name.

    Args:
        table: The table.
        setting: The setting that names a row, for messages.
        name: Name of the row.

    Returns:
        The row.

    Raises:
        UserError: An unknown name.
    """
    require(isinstance(name, str) and name in table, setting, name, f"one of {', '.join(table)}")
    return table[name]


def configured(entry: Entry, name: str, setting: str, values: Mapping[str, Any]) -> Hyperparameters:
    """Make the hyper-parameters of a row.

    Args:
        entry: The row.
        name: Its name, for messages.
        setting: Prefix of the hyper-parameters, for messages.
        values: Those that differ from the defaults.

    Returns:
        The hyper-parameters.

    Raises:
        UserError: An unknown hyper-parameter, or a value out of its range.
    """
    known = [item.name for item in fields(entry.config)]
    for key in values:
        if key not in known:
            raise UserError(
                f"{setting}.{key}: {name} has no such hyper-parameter; it takes {', '.join(known) or 'none'}"
            )
    return entry.config(**values)


def resolved(
    entry: Entry, name: str, setting: str, given: Hyperparameters, bare: type[Hyperparameters]
) -> Hyperparameters:
    """Check that hyper-parameters are those of a row.

    Args:
        entry: The row.
        name: Its name, for messages.
        setting: The setting that holds the hyper-parameters, for messages.
        given: The hyper-parameters.
        bare: A class whose instances stand for the row's defaults.

    Returns:
        The hyper-parameters, or the row's defaults.

    Raises:
        UserError: They are of another row.
    """
    if type(given) is bare:
        return entry.config()
    expected = f"a {entry.config.__name__}, the hyper-parameters of {name}"
    require(type(given) is entry.config, setting, type(given).__name__, expected)
    return given
