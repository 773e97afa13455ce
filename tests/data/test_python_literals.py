"""Lines of Python literals are read as Python reads them, by a JSON parser."""

import json
import random
from pathlib import Path

import pytest

from ptmrec_dist.data.importers.rows import TextFormat, Unreadable, read_rows
from ptmrec_dist.data.tables.python_literals import as_json

_PIECES = [
    "pan",
    "it's",
    '"',
    "'",
    "\\",
    "\\n",
    "\n",
    "\t",
    "\x00",
    "é",
    "\x9d",
    "日本",
    "😀",
    "\ud800",
    "True",
    "{None: [",
    ", ",
]


def _value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(5 if depth > 3 else 7)
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {_text(rng): _value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [_text(rng), rng.randrange(-(10**12), 10**12), rng.gauss(0, 1e6), rng.random() < 0.5, None][kind]


def _text(rng: random.Random) -> str:
    return "".join(rng.choices(_PIECES, k=rng.randrange(6)))


@pytest.mark.parametrize("seed", range(200))
def test_what_python_prints_is_read_back(seed: int) -> None:
    value = {"asin": _value(random.Random(seed))}
    assert json.loads(as_json(repr(value))) == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r"""{u'a': U"b\x41\u00e9\U0001F600\101\0"}""", {"a": "bAé😀A\0"}),
        (r"""{'a': 'no \escape\q'}""", {"a": "no \\escape\\q"}),
        (r"""{'a': "\a\b\f\v\r\"\'"}""", {"a": "\a\b\f\v\r\"'"}),
    ],
)
def test_every_way_to_write_a_character_is_read(literal: str, value: object) -> None:
    assert json.loads(as_json(literal)) == value


@pytest.mark.parametrize(
    "line",
    [
        "{'a': open('file')}",
        "{'a': 1 + 1}",
        "{'a': (1, 2)}",
        "{1: 2}",
        "{'a': 'no end}",
        r"{'a': '\U00110000'}",
        "[" * 400_000,
        "'" + "\\'" * 400_000,
        "-" * 400_000,
        "a" + ".b" * 200_000,
    ],
    ids=range(10),
)
def test_what_is_no_row_is_counted_and_the_next_line_is_read(line: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(f"{line}\n{{'a': 'b'}}\n")
    bad, good = read_rows(tmp_path / "meta.json", TextFormat())
    assert isinstance(bad, Unreadable)
    assert bad.reason == "not a JSON object"
    assert good == {"a": "b"}
