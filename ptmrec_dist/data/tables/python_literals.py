"""Python literals, the form of data sets of 2014 to 2017 (Amazon, Steam), turned into JSON without Python's own parser.

That parser executes nothing for literals either, but takes hundreds of bytes of memory for each byte of a line.
"""

import json
import re
from typing import Any

_TOKEN = re.compile(
    r"""[uU]?(?:'(?P<single>(?:[^'\\]|\\.)*+)'|"(?P<double>(?:[^"\\]|\\.)*+)")|(?P<open>['"])|\b(?P<word>True|False|None)\b""",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null"}
_ESCAPE = re.compile(
    r"\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<octal>[0-7]{1,3})|(?P<letter>.))",
    re.DOTALL,
)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_LETTERS |= {character: character for character in "\\'\""}


def loads(line: str) -> Any:
    """Read a line of JSON, or else of a Python literal.

    Args:
        line: The line.

    Returns:
        Its value.

    Raises:
        ValueError: It is neither.
        RecursionError: It is nested too deeply.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return json.loads(as_json(line))


def as_json(literal: str) -> str:
    """Turn a literal of dicts with string keys, lists, strings, numbers, True, False and None into JSON.

    Args:
        literal: The literal, on one line; what is none is left as it is, for the JSON parser to refuse.

    Returns:
        The same in JSON.

    Raises:
        ValueError: A string does not end, or has an escape of no character.
    """
    return _TOKEN.sub(_token, literal)


def _token(found: re.Match[str]) -> str:
    if word := found["word"]:
        return _WORDS[word]
    if found["open"]:
        raise ValueError("a string that does not end")
    body = found["double"] if found["single"] is None else found["single"]
    return json.dumps(_ESCAPE.sub(_character, body))


def _character(found: re.Match[str]) -> str:
    if number := found["x"] or found["u"] or found["U"]:
        return chr(int(number, 16))
    if found["octal"]:
        return chr(int(found["octal"], 8))
    return _LETTERS.get(found["letter"], found[0])
