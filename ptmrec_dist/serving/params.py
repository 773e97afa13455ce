"""Parameters of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.ids import shown

Unknown = Literal["skip", "error"]
Candidates = Literal["warm", "cold", "all", "items"]


@dataclass(frozen=True)
class Params:
    """Parameters of a request, by these names."""

    top_k: int = 10
    """Items per row, 1 or more."""
    exclude_seen: bool = True
    """Leave out what a user took in any part of the data, or the items of a visitor's history."""
    candidates: Candidates = "warm"
    """Items to choose from. warm: those with interactions, ranked by the full score; cold: those without any, by the cold
    score; all: both, by the cold score; items: those of `items`, by the full score if all of them are warm, else by the
    cold score."""
    items: Sequence[str] = ()
    """Ids to choose from, such as what is in stock, under `candidates="items"`."""
    exclude: Sequence[str] = ()
    """Ids of items to leave out of every list."""
    filters: Sequence[str] = ()
    """Conditions on columns that the catalogue was packed with, all of which an item must fulfil: `year>=1990`."""
    diversity: float = 0.0
    """Weight of diversity against relevance, 0 to 1, by maximal marginal relevance; 0 ranks by the score alone."""
    explain: bool = False
    """Give reasons: the items of the history that are most like a recommended one, and the score that its content alone
    predicts."""
    unknown: Unknown = "skip"
    """Users and items that the model does not know: `skip` treats users as visitors without a history, leaves items out of
    histories, and reports both in the answer; `error` refuses the request."""

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int | np.integer) or self.top_k < 1:
            raise UserError(f"top_k: got {shown(self.top_k)}, expected a whole number, 1 or more")
        for name in ("exclude_seen", "explain"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise UserError(f"{name}: got {shown(getattr(self, name))}, expected true or false")
        for name, kind in (("candidates", Candidates), ("unknown", Unknown)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in get_args(kind):
                raise UserError(f"{name}: got {shown(value)}, expected {' or '.join(get_args(kind))}")
        for name, of in (("items", "item ids"), ("exclude", "item ids"), ("filters", "conditions")):
            value = getattr(self, name)
            if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{name}: got {shown(value)}, expected a list of {of}, each a string")
            # MLflow fills in lists for defaults: parameters of equal content are equal.
            object.__setattr__(self, name, tuple(value))
        if len(self.items) and self.candidates != "items":
            raise UserError(
                f"items: got {len(self.items)} ids, but candidates is {self.candidates!r}; expected 'items'"
            )
        number = self.diversity
        if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 <= number <= 1:
            raise UserError(f"diversity: got {shown(number)}, expected a number from 0 to 1")

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> "Params":
        """Read the parameters of a request.

        Args:
            given: Name to value; missing names keep their defaults, None gives all defaults.

        Returns:
            The parameters.

        Raises:
            UserError: No mapping, an unknown name, or a value of a wrong type.
        """
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise UserError(f"params: got {shown(given)}, expected a mapping of names to values")
        refuse_others("params", given, [item.name for item in fields(cls)])
        return cls(**given)


def refuse_others(what: str, given: Mapping[str, Any], expected: list[str]) -> None:
    """Refuse names that a request may not have.

    Args:
        what: What the names are, for the message.
        given: Entries of the request, by name.
        expected: Allowed names.

    Raises:
        UserError: Another name.
    """
    others = [name for name in given if name not in expected]
    if others:
        raise UserError(f"{what}: got {shown(others[0])}, expected some of {', '.join(expected)}")
