"""Ids in requests: strings, or the numbers that JSON, CSV and data frames turn them into."""

from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np

from ptmrec_dist.errors import UserError

Id = str | int
_NAMES_SHOWN = 5
_EXACT = 2**53  # floats from here on skip whole numbers


def parse_id(value: Any, where: str) -> Id:
    """Parse an id.

    Args:
        value: A string or a whole number; a data frame turns numbers into floats where values are missing.
        where: Part of the request, for the message: `row 3: user_id`.

    Returns:
        The string unchanged, or the number.

    Raises:
        UserError: Anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        if abs(float(value)) >= _EXACT:
            raise UserError(f"{where}: got {shown(value)}, which may have lost digits; send ids as strings")
        return int(value)
    raise UserError(f"{where}: got {shown(value)}, expected a string or a whole number")


def is_absent(value: Any) -> bool:
    """Whether a cell of a table is empty.

    Args:
        value: Any cell.

    Returns:
        True for None, NaN, and pandas' NA and NaT.
    """
    # pandas' NA refuses comparison, so types are compared by name; lists and arrays are not missing, whatever they hold.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def shown(value: Any) -> str:
    """Format a value of a wrong type for a message.

    Args:
        value: Anything.

    Returns:
        Its type and the beginning of its representation, on one line.
    """
    if value is None:
        return "null"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text[:40]}{'…' if len(text) > 40 else ''}"


def unknown_of(names: Sequence[str]) -> str:
    """Format unknown ids for a message.

    Args:
        names: Ids, some perhaps repeatedly.

    Returns:
        How many there are, and the first of them.
    """
    names = list(dict.fromkeys(names))
    listed = ", ".join(map(repr, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{len(names)} unknown ({listed})"


class IdIndex:
    """Finds the row of an id. Strings must be equal; a number matches the one id with its value, as 17 matches `0017`.

    Args:
        ids: Ids by row.
        kind: Name of the column, for messages: `user_id`.
    """

    def __init__(self, ids: Sequence[str], kind: str) -> None:
        self.ids = ids
        self._kind = kind
        self._rows = {name: row for row, name in enumerate(ids)}

    def find(self, name: Id) -> int | None:
        """Find an id.

        Args:
            name: As `parse_id` returns it.

        Returns:
            Its row; None where there is no such id.

        Raises:
            UserError: A number that matches several ids.
        """
        if isinstance(name, str):
            return self._rows.get(name)
        rows = self._rows_of_numbers.get(name, [])
        if len(rows) > 1:
            some = " and ".join(repr(self.ids[row]) for row in rows[:2])
            raise UserError(f"{self._kind}: got the number {name}, which matches both {some}; send ids as strings")
        return rows[0] if rows else None

    @cached_property
    def _rows_of_numbers(self) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for row, name in enumerate(self.ids):
            digits = name.removeprefix("-")
            if digits.isascii() and digits.isdigit() and len(digits) < 1000:
                rows.setdefault(int(name), []).append(row)
        return rows
