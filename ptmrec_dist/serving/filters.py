"""Conditions on catalogue columns in a request: `genre=Comedy`, `year>=1990`, `tags~noir`.

Two numbers are compared as numbers, two other texts as texts. A number and another text are unequal, and neither is less. An
item without a value fulfils no condition but `!=`.

Legend: I items.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.ids import shown

_CONDITION = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>>=|<=|!=|=|>|<|~)\s*(?P<value>.*?)\s*", re.DOTALL)
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SIGNS = "=, !=, <, <=, >, >= or ~ (contains)"


@dataclass(frozen=True)
class Condition:
    """A condition on one column."""

    column: str
    """Name of the column."""
    sign: str
    """`=`, `!=`, `<`, `<=`, `>`, `>=`, or `~` for contains, in any case of letters."""
    value: str
    """What the column is compared with."""

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a condition.

        Args:
            text: Such as `year>=1990`.

        Returns:
            The condition.

        Raises:
            UserError: Anything else.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise UserError(f"filters: got {shown(text)}, expected a column, {SIGNS}, and a value: 'year>=1990'")
        return cls(**found.groupdict())

    def holds(self, values: pl.Series) -> np.ndarray:
        """Return which items fulfil it.

        Args:
            values: The column, as text, empty where an item has no value.

        Returns:
            bool [I].
        """
        if self.sign == "~":
            found = values.str.to_lowercase().str.contains(self.value.lower(), literal=True)
        else:
            compared = _SIGNS[self.sign]
            (number,) = _numbers(pl.Series([self.value]))
            if number is None:
                found = compared(values, self.value)
            else:
                found = compared(_numbers(values), number).fill_null(self.sign == "!=")
        holds_I: np.ndarray = (found & ((values != "") | (self.sign == "!="))).to_numpy()
        return holds_I


def _numbers(texts: pl.Series) -> pl.Series:
    """The finite numbers among them; null for everything else, `nan` and `inf` too."""
    numbers = texts.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(False), None)


def fulfilling(filters: Sequence[str], attributes: pl.DataFrame) -> np.ndarray:
    """Find the items that fulfil all conditions.

    Args:
        filters: Conditions as text.
        attributes: Catalogue columns of the items, as text.

    Returns:
        bool [I].

    Raises:
        UserError: A condition that cannot be read, or on a column that the model does not have.
    """
    holds_I = np.ones(attributes.height, dtype=bool)
    for condition in map(Condition.parse, filters):
        if condition.column not in attributes.columns:
            have = ", ".join(attributes.columns) or "none: pack the catalogue with --columns.attributes"
            raise UserError(f"filters: got the column {condition.column!r}, but the model has {have}")
        holds_I &= condition.holds(attributes[condition.column])
    return holds_I
