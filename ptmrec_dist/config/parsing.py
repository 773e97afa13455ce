"""Settings as plain nested values, as in YAML and sweeps: merging, dotted keys, and the parser that checks them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ptmrec_dist.config.messages import in_our_form
from ptmrec_dist.config.recommenders import RECOMMENDERS, recommender_entry
from ptmrec_dist.config.refused_values import path_of, refuse_odd_values
from ptmrec_dist.config.tuning import METHODS, TuningConfig, groups, require_used
from ptmrec_dist.config.yaml_values import as_declared
from ptmrec_dist.errors import UserError, on_one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Settings = TypeVar("Settings")


def settings_parser(
    settings: type, recommender: str | None = None, described: bool = False, **options: Any
) -> "ArgumentParser":
    """Make the parser of a command's settings.

    Args:
        settings: The dataclass of the command's settings.
        recommender: Recommender whose hyper-parameters are under `model`, where the command takes some; by default the
            settings' own.
        described: Whether its help describes each option: reading the source code for that is most of the work.
        **options: Options of jsonargparse's parser.

    Returns:
        The parser; `build` turns what it parsed into settings.

    Raises:
        UserError: An unknown recommender.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings
    from jsonargparse.typing import register_type

    set_parsing_settings(docstring_parse_attribute_docstrings=described)
    register_type(Path, str, path_of, type_check=isinstance)
    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    defaults: dict[str, Any] = {item.name: item.default for item in fields(settings)}
    own = {"recommender", "model"} if chooses_recommender(settings) else set()
    parser.add_class_arguments(settings, None, skip=own | ({"tuning"} & defaults.keys()))
    if own:
        _add_recommender(parser, recommender or defaults["recommender"])
    if "tuning" in defaults:
        _add_tuning(parser, settings)
    return parser


def _add_recommender(parser: "ArgumentParser", chosen: str) -> None:
    names = Literal[tuple(RECOMMENDERS)]  # type: ignore[valid-type]
    text = f"Recommender to train; the options below `model` are those of {chosen}."
    parser.add_argument("--recommender", type=names, default=chosen, help=text)
    parser.add_class_arguments(recommender_entry(chosen).config, "model")


def _add_tuning(parser: "ArgumentParser", settings: type) -> None:
    declared: Any = next(item for item in fields(settings) if item.name == "tuning")
    default = declared.default_factory().method
    parser.add_class_arguments(TuningConfig, "tuning", skip={"method", "settings"}, instantiate=False)
    names = Literal[tuple(METHODS)]  # type: ignore[valid-type]
    rates = ", ".join(f"{name} {entry.learning_rate:g}" for name, entry in METHODS.items())
    text = f"Tuning method of the encoder; its settings are below its name. Default learning rates: {rates}."
    parser.add_argument("--tuning.method", type=names, default=default, help=text)
    for name, config in groups(settings).items():
        parser.add_class_arguments(config, name)


def chooses_recommender(settings: type) -> bool:
    """Return whether a command's settings choose a recommender, so that they contain its hyper-parameters.

    Args:
        settings: The dataclass of the command's settings.

    Returns:
        Whether they do.
    """
    return "recommender" in {item.name for item in fields(settings)}


def build(settings: type[Settings], parser: "ArgumentParser", parsed: "Namespace") -> Settings:
    """Turn parsed values into settings.

    Args:
        settings: The dataclass of a command's settings.
        parser: Result of `settings_parser`.
        parsed: Its result.

    Returns:
        An instance of `settings`.

    Raises:
        UserError: Values that the settings refuse.
    """
    kinds: dict[str, Any] = {item.name: item.type for item in fields(settings)}  # type: ignore[arg-type]
    if chooses_recommender(settings):
        kinds["model"] = recommender_entry(parsed.recommender).config
    refuse_odd_values(kinds | groups(settings), parsed)
    try:
        values = parser.instantiate(parsed)
    except ValueError as error:
        refusal = error.__cause__ if isinstance(error.__cause__, UserError) else error
        raise UserError(on_one_line(refusal)) from error
    given = {item.name: values[item.name] for item in fields(settings)}  # type: ignore[arg-type]
    if "tuning" in given:
        tuning = TuningConfig(**given["tuning"].as_dict())
        of_methods = {name: values[name] for name in groups(settings)}
        require_used([name for name, own in of_methods.items() if own != type(own)()], {tuning.method})
        given["tuning"] = replace(tuning, settings=of_methods.get(tuning.method, tuning.settings))
    return settings(**given)


def plain_settings(settings: Any) -> dict[str, Any]:
    """Turn settings into nested plain values, as `from_plain` takes them.

    Args:
        settings: A dataclass of this package.

    Returns:
        Nested dict of numbers, strings, lists and None; settings of a tuning method are below its name.
    """
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    own = plain["tuning"].pop("settings") if "tuning" in plain else {}
    return plain | ({plain["tuning"]["method"]: own} if own else {})


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
    from jsonargparse import ArgumentError

    kind: type = settings  # mypy takes `type[Settings]` for unhashable
    chosen = values.get("recommender") if chooses_recommender(settings) else None
    if chosen:
        recommender_entry(chosen)  # refuses what is no name
    parser = _parser_of_values(kind, chosen or None, (*RECOMMENDERS.items(), *METHODS.items()))
    try:
        return build(settings, parser, parser.parse_object(as_declared(settings, values)))
    except (ArgumentError, TypeError) as error:
        raise UserError(in_our_form(str(error), parser._option_string_actions)) from error


@cache
def _parser_of_values(settings: type, recommender: str | None, known: tuple[object, ...]) -> "ArgumentParser":
    """The parser of values, made once as long as the same recommenders and methods are `known`."""
    return settings_parser(settings, recommender)


def merged(settings: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings.

    Args:
        settings: Nested values.
        special: Nested values that override those.

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
