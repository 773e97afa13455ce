"""Parameters of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.ids import shown

Unknown = Literal["skip", "error"]


@dataclass(frozen=True)
class Params:
    """Parameters of a request, by these names."""

    top_k: int = 10
    """Items per row, 1 or more."""
    exclude_seen: bool = True
    """Leave out a user's training items, or the items of a visitor's history."""
    include_cold: bool = False
    """Rank all items by the cold score instead of the warm ones by the full score."""
    unknown: Unknown = "skip"
    """Users and items that the model does not know: `skip` treats users as visitors without a history, leaves items out of
    histories, and reports both in the answer; `error` refuses the request."""

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int | np.integer) or self.top_k < 1:
            raise UserError(f"top_k: got {shown(self.top_k)}, expected a whole number, 1 or more")
        for name in ("exclude_seen", "include_cold"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise UserError(f"{name}: got {shown(getattr(self, name))}, expected true or false")
        if self.unknown not in get_args(Unknown):
            raise UserError(f"unknown: got {shown(self.unknown)}, expected {' or '.join(get_args(Unknown))}")

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
