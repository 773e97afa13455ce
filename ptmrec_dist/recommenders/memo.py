"""Results that are computed from a table once, as long as it stays the same."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class OncePerTable(Generic[Result]):
    """Keeps what was last computed from a table; the table itself is not kept alive. Copies of it start empty."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, Result] | None = None

    def get(self, table: Tensor, compute: Callable[[], Result]) -> Result:
        """Compute a result, unless the last one is of this very table and no value of it has changed since.

        Args:
            table: What the result depends on.
            compute: Computes it.

        Returns:
            The result.
        """
        if self._last is not None:
            last, version, result = self._last
            if last() is table and version == table._version:
                return result
        result = compute()
        self._last = weakref.ref(table), table._version, result
        return result

    def __reduce__(self) -> tuple[type["OncePerTable[Result]"], tuple[()]]:
        return type(self), ()
