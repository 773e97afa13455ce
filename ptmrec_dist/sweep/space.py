"""Search space of a sweep: parsed from its settings into Optuna's distributions and checked before any trial starts."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ptmrec_dist.config import SweepConfig, from_plain, merged, nested
from ptmrec_dist.errors import UserError, on_one_line
from ptmrec_dist.storage import is_url
from ptmrec_dist.sweep.stages import STAGES, Stage, command_of
from ptmrec_dist.training.run_folder import PATHS

Space = dict[str, BaseDistribution]
"""Dotted key of what a trial trains to the distribution that it is sampled from."""

Point = dict[str, Any]
"""Dotted key to value: the hyper-parameters of one trial."""

_RANGES: dict[str, Any] = {
    "uniform": (FloatDistribution, {}),
    "loguniform": (FloatDistribution, {"log": True}),
    "randint": (IntDistribution, {}),
    "lograndint": (IntDistribution, {"log": True}),
}


def read_space(config: SweepConfig) -> Space:
    """Parse the space of the settings into distributions.

    Args:
        config: Settings.

    Returns:
        The space, in the order of the settings.

    Raises:
        UserError: An unknown kind, an invalid range, or in a grid a range instead of choices.
    """
    space = {key: _distribution(f"space.{key}", given) for key, given in config.space.items()}
    if config.search == "grid":
        for key, distribution in space.items():
            if not isinstance(distribution, CategoricalDistribution):
                raise UserError(f"space.{key}: got {config.space[key]}, but a grid takes {{choice: [..]}} only")
    return space


def grid_points(space: Space) -> list[Point]:
    """List every combination of choices.

    Args:
        space: Choices only.

    Returns:
        The points; the last key changes fastest.
    """
    values = [_candidates(distribution) for distribution in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def settings_of(config: SweepConfig, point: Point, **fixed: Any) -> dict[str, Any]:
    """Assemble the settings of a trial at a point.

    Args:
        config: Settings of the sweep.
        point: Sampled hyper-parameters.
        **fixed: Settings that are set by the sweep (`out`, `tracking`).

    Returns:
        Nested plain settings, every path absolute.

    Raises:
        UserError: An unknown recommender.
    """
    stage = STAGES[command_of(config)]
    plain = merged(nested(getattr(config, stage.option)), nested(point))
    absolute = {name: _absolute(plain[name]) for name in PATHS & plain.keys() if isinstance(plain[name], str)}
    return stage.used(config, merged(plain | absolute | stage.given(config), fixed))


def read_by(config: SweepConfig, point: Point) -> Point:
    """Leave out what the trial at a point does not read: settings of recommenders or tuning methods that it does not choose.

    Args:
        config: Settings of the sweep.
        point: Sampled hyper-parameters.

    Returns:
        The others, in their order.
    """
    settings = settings_of(config, point)
    return {name: value for name, value in point.items() if _has(settings, name)}


def check_space(config: SweepConfig, space: Space) -> list[Any]:
    """Check every choice and both ends of every range with the parser of what a trial trains.

    Args:
        config: Settings of the sweep.
        space: Result of `read_space`.

    Returns:
        The parsed settings, each with one searched key changed.

    Raises:
        UserError: A key that the command lacks or the sweep sets itself, or a value that the command refuses.
    """
    stage = STAGES[command_of(config)]
    for key in config.space:
        name = key.split(".")[0]
        if name in stage.decided:
            raise UserError(f"space.{key}: the sweep itself decides on it, it cannot be searched")
        if name in stage.shared:
            raise UserError(f"space.{key}: cannot be searched, expected one value for all trials: {stage.option}.{key}")
    for key in getattr(config, stage.option):
        if key.split(".")[0] in stage.decided:
            raise UserError(f"{stage.option}.{key}: the sweep itself decides on it; leave it out")
    return [_parsed(config, stage, first | change, change) for first, change in _changes(space, stage.chooser)]


def _changes(space: Space, chooser: str) -> Iterator[tuple[Point, Point]]:
    """A point, and what is changed of it: each candidate of each key, beside each choice that has settings of its own."""
    first = {key: _candidates(distribution)[0] for key, distribution in space.items()}
    choices = _candidates(space[chooser]) if chooser in space else []
    for key, distribution in space.items():
        beside = [{chooser: choice} for choice in choices if key != chooser] or [{}]
        for value, other in itertools.product(_candidates(distribution), beside):
            yield first, other | {key: value}


def _parsed(config: SweepConfig, stage: Stage, point: Point, changed: Mapping[str, Any]) -> Any:
    try:
        return from_plain(stage.settings, settings_of(config, point, out="trial"))
    except UserError as error:
        values = ", ".join(f"{key} = {value!r}" for key, value in changed.items())
        raise UserError(f"space or {stage.option}, with {values}: {error}") from error


def _absolute(path: str) -> str:
    return path if is_url(Path(path)) else str(Path(path).resolve())


def _candidates(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _is_finite(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return -math.inf < value < math.inf


def _distribution(name: str, given: Any) -> BaseDistribution:
    kinds = ", ".join(["choice", *_RANGES])
    if not isinstance(given, dict) or len(given) != 1:
        raise UserError(f"{name}: got {given!r}, expected one of {kinds}, as in {{uniform: [0.1, 0.5]}}")
    ((kind, values),) = given.items()
    if kind == "choice":
        plain = isinstance(values, list) and all(isinstance(value, bool | int | float | str | None) for value in values)
        if not plain or not values:
            raise UserError(f"{name}: got {values!r}, expected a list of numbers, words, true, false or null")
        if len(set(values)) < len(values):
            raise UserError(f"{name}: got {values!r}, expected each choice only once")
        return CategoricalDistribution(values)
    if kind not in _RANGES:
        raise UserError(f"{name}: got {kind}, expected one of {kinds}")
    build, how = _RANGES[kind]
    whole = build is IntDistribution
    if not isinstance(values, list) or len(values) != 2 or not all(_is_finite(value, whole) for value in values):
        raise UserError(f"{name}: got {values!r}, expected [lowest, highest], two {'whole ' * whole}numbers")
    try:
        distribution: BaseDistribution = build(*values, **how)
    except ValueError as error:
        raise UserError(f"{name}: {on_one_line(error)}") from error
    return distribution


def _has(settings: Mapping[str, Any], name: str) -> bool:
    first, _, rest = name.partition(".")
    return first in settings and (not rest or _has(settings[first], rest))
