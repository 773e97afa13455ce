"""The words of a command line, in the form that jsonargparse reads: values of lists, switches, leading words, files."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from ptmrec_dist.config.tuning import groups
from ptmrec_dist.config.yaml_files import read_settings
from ptmrec_dist.config.yaml_values import as_declared
from ptmrec_dist.errors import UserError


def in_full(argv: Sequence[str], settings: type) -> list[str]:
    """Write each option and its value in full.

    Args:
        argv: Arguments after the command; `--local_rank` (added by DeepSpeed's launcher) is dropped.
        settings: The dataclass of the command's settings.

    Returns:
        The words.

    Raises:
        UserError: A list or a mapping that is given twice.
    """
    words = [_underscored(word) for word in _with_leading(argv, settings)]
    _refuse_repeats(words, settings)
    words = _with_lists(_with_switches(words, settings), settings)
    return [word for word in words if not word.startswith("--local_rank=")]


def _with_leading(words: Sequence[str], settings: type) -> Sequence[str]:
    """`ptmrec import movielens` is `ptmrec import --format movielens`; a list takes all words before the first option."""
    setting = getattr(settings, "leading", None)
    if setting is None or not words or words[0].startswith("-"):
        return words
    if f"--{setting}" not in list_options(settings):
        return [f"--{setting}={words[0]}", *words[1:]]
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    return [f"--{setting}={json.dumps(leading)}", *words[len(leading) :]]


def _underscored(word: str) -> str:
    """`--on-error` is accepted for `--on_error`, and `--from`, a word of Python that no setting can be called."""
    option, equals, value = word.partition("=")
    if not option.startswith("--"):
        return word
    option = option.replace("-", "_").replace("__", "--", 1)
    return {"--from": "--from_run"}.get(option, option) + equals + value


def _refuse_repeats(words: list[str], settings: type) -> None:
    """The last of several would be used alone, though all may be meant; of single values that is the convention."""
    together = dict.fromkeys(list_options(settings), "A,B")
    together |= {f"--{item.name}": "'{A: 1, B: 2}'" for item in fields(settings) if get_origin(item.type) is dict}
    given: dict[str, str] = {}
    for option, value in _options(words):
        if option in given:
            got = f"{option.removeprefix('--')}: got {given[option]!r} and {value!r}"
            raise UserError(f"{got}, expected the option once, with all its values: {option} {together[option]}")
        if option in together:
            given[option] = value


def _with_switches(words: list[str], settings: type) -> list[str]:
    """A switch without a value is turned on: `--all` is `--all true`."""
    switches = {f"--{item.name}" for item in fields(settings) if item.type is bool}
    alone = [following.startswith("--") for following in [*words[1:], "--"]]
    return [f"{word}=true" if word in switches and last else word for word, last in zip(words, alone)]


def _with_lists(words: list[str], settings: type) -> list[str]:
    """A list is written as its values: `--seeds 0,1` is `--seeds [0,1]`, and one name is a list of one."""
    lists = list_options(settings)
    written, option = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if name in lists and equals:
            word = f"{name}={_as_list(value, lists[name])}"
        elif option in lists and not word.startswith("--"):
            word = _as_list(word, lists[option])
        written.append(word)
        option = word
    return written


def list_options(settings: type, prefix: str = "--") -> dict[str, type]:
    """Find the options that take a list, those of nested settings too.

    Args:
        settings: A dataclass of settings.
        prefix: What their names begin with.

    Returns:
        Option to the type of its values.
    """
    found = {}
    types: dict[str, Any] = {item.name: item.type for item in fields(settings)} | groups(settings)
    for name, kind in types.items():
        if get_origin(kind) is tuple:
            found[prefix + name] = get_args(kind)[0]
        for nested in (kind, *get_args(kind)):
            if is_dataclass(nested) and isinstance(nested, type):
                found |= list_options(nested, f"{prefix}{name}.")
    return found


def _as_list(value: str, element: type) -> str:
    if value.lstrip().startswith("["):
        return value
    values = [part.strip() for part in value.split(",")] if value.strip() else []
    return f"[{','.join(values)}]" if element in (int, float, bool) else json.dumps(values)


def with_files(words: list[str], settings: type) -> list[str]:
    """Put the content of each `--config` file in its place.

    Args:
        words: Words as `in_full` writes them.
        settings: The dataclass of the command's settings, which declares the types of the values.

    Returns:
        The words.

    Raises:
        UserError: A file that is not there, or is no YAML.
    """
    written, option = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if option == "--config":
            word = _content_of(word, settings)
        elif name == "--config" and equals:
            word = f"{name}={_content_of(value, settings)}"
        written.append(word)
        option = word
    return written


def _content_of(path: str, settings: type) -> str:
    if not Path(path).is_file():
        raise UserError(f"config: got {path!r}, which is not a file; expected one with settings as YAML")
    return json.dumps(as_declared(settings, read_settings(Path(path))), default=str)


def chosen_recommender(words: list[str]) -> str | None:
    """Find the recommender that a command line chooses, by itself or in a file: its hyper-parameters are options, too.

    Args:
        words: Words as `in_full` writes them.

    Returns:
        Its name as written, or None.
    """
    chosen = None
    for option, value in _options(words):
        if option == "--recommender":
            chosen = value
        elif option == "--config" and Path(value).is_file():
            named = read_settings(Path(value)).get("recommender")
            chosen = named if isinstance(named, str) else chosen
    return chosen


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    for word, following in zip(words, [*words[1:], ""]):
        option, equals, value = word.partition("=")
        yield option, value if equals else following
