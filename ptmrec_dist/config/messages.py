"""What the parser refuses, in the form of all other messages: what was got, what was expected."""

import re
from collections.abc import Iterable

from ptmrec_dist.config.refused_values import NO_PATH
from ptmrec_dist.errors import nearest

_WRONG = re.compile(r'Parser key "(?P<name>[^"]+)": (?P<why>.*?)\.? (?:Got|Given) value: ?(?P<got>.*)')
_NONE_OF = re.compile(
    r'Parser key "(?P<name>[^"]+)": Does not validate against any of the Union subtypes Subtypes: \[(?P<kinds>[^]]*)\] '
    r"Errors: (?!.*Parser key).* Given value: (?P<got>.*)"
)
_NO_PATH = re.compile(
    rf'Parser key "(?P<name>[^"]+)": .*?{NO_PATH} (?P<got>.*?)(?: Expected a <class \'NoneType\'> .*)?'
)
_NO_SETTINGS = re.compile(
    r'Parser key "(?P<name>[^"]+)": Not a valid subclass of \w+\. Got value: (?P<got>.*?) Subclass types .*'
)
_INSIDE = re.compile(
    r'Parser key "(?P<name>[^"]+)": (?P<union>Does not validate against any of the Union subtypes .*?)?'
    r"Problem with given class_path '[^']+': (?P<inner>.*)"
)
_NESTED = re.compile(
    r"""Parser key "(?P<name>[^"]+)": .*?NestedArg\(key='(?P<key>[^']*)', val=(?P<got>'.*?'|".*?"|.*?)\)["']?.*"""
)
_END_OF_UNION = " Expected a <class 'NoneType'> Given value type: "
_UNREADABLE = re.compile(r"""Parser key "(?P<name>[^"]+)": Unable to load config '(?P<got>.*?)'.*""")
_NOT_ACCEPTED = re.compile(r"(?:Option|Group '(?P<group>[^']+)' does not accept option) '(?P<name>[^']+)'")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [a, b]",
    "dict": "settings by name, such as {a: 1}",
    "Path": "a path",
}
_QUOTES = "'\""
_REQUIRED = "the following arguments are required: "
_UNKNOWN = "unrecognized arguments: "


def in_our_form(message: str, options: Iterable[str]) -> str:
    """Word a message of the parser as messages of this package are worded.

    Args:
        message: The message; lines and their bullets are joined.
        options: Options that the command has, such as `--out`.

    Returns:
        What was got and what was expected; a message of another form as it is.
    """
    message = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
    if inside := _INSIDE.fullmatch(message):
        return in_our_form(_of_inner(inside), options)
    if message.startswith(_REQUIRED):
        missing = message.removeprefix(_REQUIRED).split(", ")
        return f"{', '.join(missing)}: got none, expected {' and '.join(f'--{name}' for name in missing)}"
    if message.startswith(_UNKNOWN):
        given = message.removeprefix(_UNKNOWN)
        return _unknown(given, given.split()[0].partition("=")[0], options)
    if refused := _NOT_ACCEPTED.search(message):
        name = ".".join(filter(None, (refused["group"], refused["name"])))
        own = [option.removeprefix("--") for option in options if not option.endswith(".help")]
        return _unknown(name, name, own)
    if nested := _NESTED.fullmatch(message):  # `--encoder.model` of a command whose `--encoder` is a single value
        return _unknown(
            f"--{nested['name']}.{nested['key']} {nested['got'].strip(_QUOTES)}", f"--{nested['name']}", options
        )
    if no_path := _NO_PATH.fullmatch(message):
        return f"{no_path['name']}: got {no_path['got']}, expected a path"
    if no_settings := _NO_SETTINGS.fullmatch(message):
        return f"{no_settings['name']}: got {no_settings['got']!r}, expected {_KINDS['dict']}"
    if unreadable := _UNREADABLE.fullmatch(message):
        return f"{unreadable['name']}: got {unreadable['got']!r}, expected {_KINDS['dict']}, or a file of them"
    if (none := _NONE_OF.fullmatch(message)) and (expected := _any_of(none["kinds"])):
        return f"{none['name']}: got {none['got']!r}, expected {expected}"
    if (wrong := _WRONG.fullmatch(message)) and (expected := _expected(wrong["why"])):
        return f"{wrong['name']}: got {wrong['got']!r}, expected {expected}"
    return re.sub(r'^Parser key "([^"]+)": ', r"\1: ", message)


def _of_inner(inside: re.Match[str]) -> str:
    """The message about one of the settings that may be absent together, or that are there under several names."""
    inner, outer = inside["inner"], f"{inside['name']}.NAME"
    if inside["union"]:
        inner, outer = inner.rpartition(_END_OF_UNION)[0], inside["name"]
    return re.sub(r"""^(Parser key "|Option ')""", rf"\1{outer}.", inner)


def _unknown(given: str, name: str, options: Iterable[str]) -> str:
    return f"unknown: {given}{nearest(name, options)}"


def _any_of(classes: str) -> str:
    """Classes of Python in words; empty where one of them is not known."""
    kinds = [name.rpartition(".")[2] for name in re.findall(r"<class '([\w.]+)'>", classes)]
    words = [
        _KINDS["dict"] if kind.endswith("Config") else _KINDS.get(kind, "") for kind in kinds if kind != "NoneType"
    ]
    return "" if "" in words else " or ".join(words)


def _expected(why: str) -> str:
    """The types that a value may have, in words; empty where one of them is not known."""
    words = []
    for kind, choices in re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])", why):
        if kind != "NoneType":
            words += [choice.strip("'") for choice in choices.split(", ")] if choices else [_KINDS.get(kind, "")]
    return "" if "" in words else ", ".join(words[:-1]) + " or " * (len(words) > 1) + "".join(words[-1:])
