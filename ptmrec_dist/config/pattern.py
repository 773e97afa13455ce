"""A pattern of text with columns in braces, such as `images/{item_id:.3}/{item_id}.jpg`: one value for each row of a table.

Format specifications are Python's for text (https://docs.python.org/3/library/string.html#formatspec), without attributes,
indices and conversions: what stands in braces before the colon is the name of a column, whatever characters it has.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from ptmrec_dist.errors import UserError

_SPECIFICATION = re.compile(r"(.?[<>^])?([1-9]\d{0,2})?(\.[1-9]\d{0,2})?s?", re.DOTALL)
"""Alignment with a fill character, width, and precision. A width that starts with 0 would fill text on its right."""
_EXPECTED = (
    "{COLUMN}, {COLUMN:.3} (its first 3 characters) or {COLUMN:0>10} (filled with zeros on the left to 10) between other text, "
    "as in '{item_id:.3}/{item_id}.jpg'"
)


@dataclass(frozen=True)
class Pattern:
    """A pattern that has been read."""

    parts: tuple[tuple[str, str | None, str], ...]
    """Text, the column that follows it (None at the end) and how it is formatted."""

    @classmethod
    def parse(cls, text: str, option: str) -> "Pattern":
        """Read a pattern.

        Args:
            text: The pattern; `{{` and `}}` are braces.
            option: Option that gave it, for messages.

        Returns:
            The pattern.

        Raises:
            UserError: It is malformed, names no column, or formats one in another way than text is formatted.
        """
        try:
            fields = list(Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{option}: got {text!r} ({error}), expected {_EXPECTED}") from error
        for _, column, specification, conversion in fields:
            allowed = column != "" and conversion is None and _SPECIFICATION.fullmatch(specification or "")
            if column is not None and not allowed:
                raise UserError(f"{option}: got {text!r}, expected {_EXPECTED}")
        parts = tuple((before, column, specification or "") for before, column, specification, _ in fields)
        if all(column is None for _, column, _ in parts):
            raise UserError(f"{option}: got {text!r}, which names no column, expected {_EXPECTED}")
        return cls(parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns, each once."""
        return tuple(dict.fromkeys(column for _, column, _ in self.parts if column is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """Put the values of a row in the place of its columns.

        Args:
            row: Column to value.

        Returns:
            The text; empty where any of the values is.
        """
        if not all(row[column] for column in self.columns):
            return ""
        filled = [(before, "" if column is None else format(row[column], spec)) for before, column, spec in self.parts]
        return "".join(text for pair in filled for text in pair)


def is_pattern(text: str) -> bool:
    """Return whether a setting that names a column is a pattern instead.

    Args:
        text: The setting.

    Returns:
        Whether it contains a brace.
    """
    return "{" in text or "}" in text
