"""Who asks: users of the training data by their ids, visitors by the items that they took.

Legend: U users, I items, B rows asked for, D and d' widths of the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.fold_in import FoldIn

MAX_HISTORY = 10_000
"""Items of one history."""
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Askers:
    """People whom a request asks for, row by row."""

    names: Sequence[str | None]
    """User ids; None for a visitor."""
    users_BD: Tensor
    """Their vectors for the full score, float32 [B, D]."""
    modal_users_BD: Tensor | None
    """Their vectors for the cold score, float32 [B, d']; None in ID-only models."""
    seen: Interactions
    """Row and item of what they have taken."""


class People:
    """Looks people up.

    Args:
        tables: Tables of a served model.
        user_ids: User ids by user index.
        item_ids: Item ids by item index.
        warm: Whether an item was there in training, bool [I].
        seen: Training interactions.
    """

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        warm: np.ndarray,
        seen: Interactions,
    ) -> None:
        self._users_UD, self._modal_UD = tables["users"], tables.get("modal_users")
        self.user_ids = user_ids
        self._user_rows = {user: row for row, user in enumerate(user_ids)}
        self._item_rows = {item: row for row, item in enumerate(item_ids)}
        self._seen = Histories(seen, len(user_ids), len(item_ids))
        self._fold_in = FoldIn(*(tables[f"fold_in.{name}"] for name in ("centre", "weight", "bias")))
        self._items_ID, self._tellable = _history_items(tables, warm)

    def known(self, rows_B: np.ndarray) -> Askers:
        """Look users up by their index.

        Args:
            rows_B: User indices, int64 [B].

        Returns:
            These users.
        """
        places = torch.from_numpy(rows_B)
        modal = None if self._modal_UD is None else self._modal_UD[places]
        names = [self.user_ids[row] for row in rows_B]
        return Askers(names, self._users_UD[places], modal, self._seen.of(rows_B))

    def ask(self, users: Sequence[Any], histories: Sequence[Any]) -> Askers:
        """Look the people of a request up.

        Args:
            users: User id of each row [B], None or NaN where it has none.
            histories: Item ids of each row [B], None or NaN where it has none.

        Returns:
            Users and visitors, in the order of the rows.

        Raises:
            UserError: Unknown users or items, or a row with neither or both.
        """
        if len(users) == 0:
            raise UserError("request: got no rows, expected a user_id or a history in each of one or more")
        names = [None if _absent(user) else _name(user) for user in users]
        given = [None if _absent(history) else history for history in histories]
        for row, (name, history) in enumerate(zip(names, given, strict=True)):
            if (name is None) == (history is None):
                got = "neither" if name is None else "both"
                raise UserError(f"row {row}: got {got}, expected a user_id or a history (a list of item ids)")
        users_B = np.flatnonzero([name is not None for name in names])
        visitors_B = np.flatnonzero([name is None for name in names])
        parts = [
            (users_B, self.known(self._rows([name for name in names if name is not None]))),
            (visitors_B, self._visitors([history for history in given if history is not None])),
        ]
        return _in_order(names, [part for part in parts if len(part[0])])

    def _visitors(self, histories: Sequence[Any]) -> Askers:
        taken = self._entries(histories)
        both_BT = self._fold_in(self._items_ID, taken, len(histories))
        users_BD, modal_BD = both_BT.tensor_split([self._users_UD.shape[1]], dim=1)
        return Askers([None] * len(histories), users_BD, None if self._modal_UD is None else modal_BD, taken)

    def _entries(self, histories: Sequence[Any]) -> Interactions:
        rows: list[int] = []
        names: list[str] = []
        for row, history in enumerate(histories):
            if isinstance(history, str) or len(history) > MAX_HISTORY:
                raise UserError(
                    f"history: got {str(history)[:40]!r}, expected a list of at most {MAX_HISTORY} item ids"
                )
            rows += [row] * len(history)
            names += map(str, history)
        unknown = [name for name in dict.fromkeys(names) if name not in self._item_rows]
        if unknown:
            raise UserError(f"history: got {_some(unknown)}, expected some of the {len(self._item_rows)} items")
        items = np.array([self._item_rows[name] for name in names], dtype=np.int64)
        silent = np.flatnonzero(~self._tellable[items])
        if len(silent):
            raise UserError(
                f"history: item {names[silent[0]]!r} was held out of training, and this model knows items by their IDs "
                "only; leave it out"
            )
        return Interactions(np.array(rows, dtype=np.int64), items)

    def _rows(self, users: Sequence[str]) -> np.ndarray:
        unknown = [user for user in dict.fromkeys(users) if user not in self._user_rows]
        if unknown:
            raise UserError(
                f"user_id: got {_some(unknown)}, expected some of the {len(self._user_rows)} users of the training "
                "data; send others as a history"
            )
        return np.array([self._user_rows[user] for user in users], dtype=np.int64)


def _history_items(tables: Mapping[str, Tensor], warm: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Vectors that items of a history count with, [I, D], and which items have one.

    The ID vector of a cold item is untrained. Where the vectors of the cold score live in the same space, what its
    features say takes its place.
    """
    items_ID, modal = tables["items"], tables.get("modal_items")
    if modal is None or modal.shape != items_ID.shape:
        return items_ID, warm
    return items_ID.where(torch.from_numpy(warm)[:, None], modal), np.ones_like(warm)


def _in_order(names: Sequence[str | None], parts: Sequence[tuple[np.ndarray, Askers]]) -> Askers:
    """Put groups of people back into the rows that they came from."""
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in parts])))
    groups = [group for _, group in parts]
    modal = [group.modal_users_BD for group in groups if group.modal_users_BD is not None]
    seen_rows = [places[group.seen.users] for places, group in parts]
    return Askers(
        names,
        torch.cat([group.users_BD for group in groups])[order],
        torch.cat(modal)[order] if modal else None,
        Interactions(np.concatenate(seen_rows), np.concatenate([group.seen.items for group in groups])),
    )


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _name(user: Any) -> str:
    """Numbers beside missing values become floats on their way through a table."""
    return str(int(user)) if isinstance(user, float) and user.is_integer() else str(user)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{len(names)} unknown ({shown})"
