"""Users and visitors of a request: users of the training data by their ids, visitors by a history of items.

An unknown user is treated as a visitor without a history and gets the list of an average user.

Legend: I items, B rows of a request, D width of the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.ids import Id, IdIndex, is_absent, parse_id, shown, unknown_of
from ptmrec_dist.serving.limits import Limits
from ptmrec_dist.serving.params import Unknown
from ptmrec_dist.serving.vectors import UserVectors


@dataclass(frozen=True)
class Requesters:
    """Users and visitors of a request, row by row."""

    names: Sequence[str | None]
    """User ids; None for a visitor."""
    known: Sequence[bool]
    """Whether a row is a user of the training data."""
    unknown_items: Sequence[list[str]]
    """Items of each row's history that the model does not know, or cannot use; they were skipped."""
    users_BD: Tensor
    """Their vectors, float32 [B, D]."""
    seen: Interactions
    """Row and item of each of their interactions."""


class UserIndex:
    """Resolves users and visitors to vectors.

    Args:
        vectors: Vectors of users and visitors.
        user_ids: User ids by user index.
        item_ids: Item ids by item index.
        seen: All known interactions of these users.
        limits: Limits of a request.
    """

    def __init__(
        self,
        vectors: UserVectors,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        seen: Interactions,
        limits: Limits,
    ) -> None:
        self._vectors = vectors
        self.user_ids = user_ids
        self._users, self._items = IdIndex(user_ids, "user_id"), IdIndex(item_ids, "history")
        self._seen = Histories(seen, len(user_ids), len(item_ids))
        self._limits = limits

    def known(self, rows_B: np.ndarray) -> Requesters:
        """Look users up by their index.

        Args:
            rows_B: User indices, int64 [B].

        Returns:
            These users.
        """
        names = [self.user_ids[row] for row in rows_B]
        unknown: list[list[str]] = [[] for _ in names]
        return Requesters(names, [True] * len(names), unknown, self._vectors.known(rows_B), self._seen.of(rows_B))

    def resolve(self, users: Sequence[Any], histories: Sequence[Any], unknown: Unknown = "skip") -> Requesters:
        """Look up the users and visitors of a request.

        Args:
            users: User id of each row [B], None or NaN where it has none.
            histories: Item ids of each row [B], None or NaN where it has none.
            unknown: `skip` treats an unknown user as a visitor without a history, and leaves unknown items out; `error`
                refuses both.

        Returns:
            Users and visitors, in the order of the rows.

        Raises:
            UserError: A row with neither or both, values that are no ids or lists of ids, a history beyond the limit, or
                unknown users or items under `error`.
        """
        if len(users) == 0:
            raise UserError("request: got no rows, expected one or more, each with a user_id or a history")
        names = [None if is_absent(user) else parse_id(user, f"row {row}: user_id") for row, user in enumerate(users)]
        given = [None if is_absent(history) else self._parse(history, row) for row, history in enumerate(histories)]
        for row, (name, history) in enumerate(zip(names, given, strict=True)):
            if (name is None) == (history is None):
                got = "neither" if name is None else "both"
                raise UserError(f"row {row}: got {got}, expected a user_id or a history (a list of item ids)")
        found = [None if name is None else self._users.find(name) for name in names]
        if unknown == "error":
            self._refuse_unknown_users(names, found)
        known_B = np.flatnonzero([row is not None for row in found])
        others_B = np.flatnonzero([row is None for row in found])
        groups = []
        if len(known_B):
            groups.append((known_B, self.known(np.array([found[row] for row in known_B], dtype=np.int64))))
        if len(others_B):
            chosen = [names[row] for row in others_B], [given[row] or [] for row in others_B]
            groups.append((others_B, self._visitors(*chosen, unknown)))
        return _in_order(groups)

    def count_unknown(self, user_ids: Sequence[str]) -> int:
        """Count users that the training data does not have.

        Args:
            user_ids: Their ids.

        Returns:
            How many they are.
        """
        return sum(self._users.find(user) is None for user in user_ids)

    def items_of(self, item_ids: Sequence[Any]) -> list[int]:
        """Look up items.

        Args:
            item_ids: Ids, in a request's rows.

        Returns:
            Their indices.

        Raises:
            UserError: A value that is no id, or an unknown item.
        """
        names = [parse_id(name, f"row {row}: item_id") for row, name in enumerate(item_ids)]
        found = [self._items.find(name) for name in names]
        unknown = [str(name) for name, item in zip(names, found) if item is None]
        if unknown:
            raise UserError(f"item_id: got {unknown_of(unknown)}, expected some of the {len(self._items.ids)} items")
        return [item for item in found if item is not None]

    def _parse(self, history: Any, row: int) -> list[Id]:
        where = f"row {row}: history"
        if not isinstance(history, list | tuple | np.ndarray) or (
            isinstance(history, np.ndarray) and history.ndim != 1
        ):
            raise UserError(f"{where}: got {shown(history)}, expected a list of item ids")
        self._limits.check("history", len(history), f"{where}: items")
        return [parse_id(item, where) for item in history]

    def _visitors(self, names: Sequence[Id | None], histories: Sequence[Sequence[Id]], unknown: Unknown) -> Requesters:
        taken, skipped = self._entries(histories, unknown)
        users_BD = self._vectors.visitors(taken, len(histories))
        shown_names = [None if name is None else str(name) for name in names]
        return Requesters(shown_names, [False] * len(names), skipped, users_BD, taken)

    def _entries(self, histories: Sequence[Sequence[Id]], unknown: Unknown) -> tuple[Interactions, list[list[str]]]:
        """Look up the items of histories; returns the usable ones, and the names of the others by history."""
        found = [[self._items.find(name) for name in history] for history in histories]
        if unknown == "error":
            self._refuse_unknown_items(histories, found)
        rows: list[int] = []
        items: list[int] = []
        skipped: list[list[str]] = []
        for row, (history, indices) in enumerate(zip(histories, found)):
            used = [item for item in indices if item is not None and self._vectors.usable[item]]
            rows += [row] * len(used)
            items += used
            left = [str(name) for name, item in zip(history, indices) if item is None or not self._vectors.usable[item]]
            skipped.append(list(dict.fromkeys(left)))
        return Interactions(np.array(rows, dtype=np.int64), np.array(items, dtype=np.int64)), skipped

    def _refuse_unknown_users(self, names: Sequence[Id | None], found: Sequence[int | None]) -> None:
        unknown = [str(name) for name, row in zip(names, found) if name is not None and row is None]
        if unknown:
            raise UserError(
                f"user_id: got {unknown_of(unknown)}, expected some of the {len(self.user_ids)} users of the training data; "
                "send others as a history"
            )

    def _refuse_unknown_items(self, histories: Sequence[Sequence[Id]], found: Sequence[Sequence[int | None]]) -> None:
        pairs = [pair for history, indices in zip(histories, found) for pair in zip(history, indices)]
        unknown = [str(name) for name, item in pairs if item is None]
        if unknown:
            raise UserError(f"history: got {unknown_of(unknown)}, expected some of the {len(self._items.ids)} items")
        unusable = [name for name, item in pairs if not self._vectors.usable[item]]
        if unusable:
            raise UserError(
                f"history: item {str(unusable[0])!r} was held out of training or added later, and this model has no "
                "vector of it to read; leave it out"
            )


def _in_order(rows_and_groups: Sequence[tuple[np.ndarray, Requesters]]) -> Requesters:
    """Merge groups of users and visitors in the order of the request's rows."""
    order = np.argsort(np.concatenate([rows for rows, _ in rows_and_groups]))
    groups = [group for _, group in rows_and_groups]
    seen_rows = [rows[group.seen.users] for rows, group in rows_and_groups]

    def joined(name: str) -> list[Any]:
        values = [value for group in groups for value in getattr(group, name)]
        return [values[row] for row in order]

    return Requesters(
        joined("names"),
        joined("known"),
        joined("unknown_items"),
        torch.cat([group.users_BD for group in groups])[torch.from_numpy(order)],
        Interactions(np.concatenate(seen_rows), np.concatenate([group.seen.items for group in groups])),
    )
