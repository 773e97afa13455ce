"""Search space of a sweep: parsed from its settings into Optuna's distributions and checked before any trial starts."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ptmrec_dist.config import (
    Stage2Config,
    SweepConfig,
    from_plain,
    merged,
    nested,
    require_used,
    used_settings,
)
from ptmrec_dist.errors import UserError, on_one_line

Space = dict[str, BaseDistribution]
"""Dotted key of stage 2 to the distribution that it is sampled from."""

Point = dict[str, Any]
"""Dotted key to value: the hyper-parameters of one trial."""

_RANGES: dict[str, Any] = {
    "uniform": (FloatDistribution, {}),
    "loguniform": (FloatDistribution, {"log": True}),
    "randint": (IntDistribution, {}),
    "lograndint": (IntDistribution, {"log": True}),
}
_INPUTS = ("shards", "features", "encoder", "image_encoder", "text_encoder")
# The sweep sets these itself: they determine where a trial starts and writes, and what its result is.
_FIXED = {*_INPUTS, "stage1", "out", "device", "tracking", "select_on", "keep", "epochs"}


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
    """Assemble the settings of stage 2 at a point.

    Args:
        config: Settings of the sweep.
        point: Sampled hyper-parameters.
        **fixed: Settings that are set by the sweep (`out`, `tracking`).

    Returns:
        Nested plain settings, every path absolute.
    """
    own: dict[str, Any] = {"stage1": str(config.stage1.resolve()), "device": config.device}
    for name in _INPUTS:
        if getattr(config, name) is not None:
            own[name] = str(getattr(config, name).resolve())
    return used_settings(merged(merged(merged(own, config.stage2), nested(point)), fixed))


def check_space(config: SweepConfig, space: Space) -> list[Stage2Config]:
    """Check every choice and both ends of every range with the parser of stage 2.

    Args:
        config: Settings of the sweep.
        space: Result of `read_space`.

    Returns:
        The parsed settings, each with one searched key changed.

    Raises:
        UserError: A key that stage 2 lacks or the sweep sets itself, or a value that stage 2 refuses.
    """
    for key in config.space:
        if key.split(".")[0] in _FIXED:
            raise UserError(f"space.{key}: the sweep itself decides on it, it cannot be searched")
    for key in config.stage2:
        if key in _FIXED - {"epochs", "select_on", "keep"}:
            raise UserError(f"stage2.{key}: the sweep itself decides on it; leave it out")
    points = list(_checked(config, space))
    require_used((key.split(".")[0] for key in (*space, *config.stage2)), {point.tuning.method for point in points})
    return points


def _checked(config: SweepConfig, space: Space) -> Iterator[Stage2Config]:
    first = {key: _candidates(distribution)[0] for key, distribution in space.items()}
    for key, distribution in space.items():
        for value in _candidates(distribution):
            plain = settings_of(config, first | {key: value}, out="trial")
            try:
                settings = from_plain(Stage2Config, plain)
            except UserError as error:
                raise UserError(f"space or stage2, with {key} = {value!r}: {error}") from error
            if settings.batch_size % config.ranks:
                raise UserError(
                    f"batch_size: got {settings.batch_size}, expected a multiple of the {config.ranks} ranks of a trial"
                )
            yield settings


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
