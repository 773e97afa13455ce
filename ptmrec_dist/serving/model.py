"""Inference with a registered model: lists for users and visitors, scores of new items. See tables.py for its folder.

The full and the cold score are on different scales, so a list never mixes them: it ranks warm items by the full score, or
(`candidates`) cold or all items by the cold score.

Legend: B rows of a request, K list length, N distinct new items, D width of the scores.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.recommenders.base import Recommender
from ptmrec_dist.serving.candidates import Catalogue
from ptmrec_dist.serving.digests import check_digests
from ptmrec_dist.serving.diversity import diversified, pool_size
from ptmrec_dist.serving.ids import is_absent
from ptmrec_dist.serving.index import FILE_NAME as INDEX_FILE
from ptmrec_dist.serving.index import ExactIndex, FaissIndex, Index
from ptmrec_dist.serving.limits import Limits
from ptmrec_dist.serving.packages import compare_packages
from ptmrec_dist.serving.params import Params, refuse_others
from ptmrec_dist.serving.users import Requesters, UserIndex
from ptmrec_dist.serving.vectors import open_vectors

if TYPE_CHECKING:
    from ptmrec_dist.serving.new_items import NewItems

COLUMNS = ["user_id", "history", "image", "text"]
"""Columns that a request may have."""


class ServedModel:
    """A registered model, read into memory: its folder is not needed afterwards.

    Args:
        folder: Folder written by `registry.registering`.
        new_items: Whether to load the encoder, where the model has one; takes seconds and is needed for new items only.

    Raises:
        UserError: A file was changed since it was written, or the environment sets an invalid limit.
    """

    def __init__(self, folder: Path, new_items: bool = True) -> None:
        self._limits = Limits.from_environment()
        check_digests(folder)
        described = json.loads((folder / "model.json").read_text())
        compare_packages(described.get("packages", {}))
        self.lineage: dict[str, str] = described["lineage"]
        self._tables = load_file(folder / "tables.safetensors")
        items = pl.read_parquet(folder / "items.parquet")
        self.item_ids: pl.Series = items["item_id"]
        self.titles: pl.Series = items["title"]
        warm = items["warm"].to_numpy()
        seen = pl.read_parquet(folder / "seen.parquet")
        taken = Interactions(seen["user_index"].to_numpy(), seen["item_index"].to_numpy())
        scoring = open_vectors(folder, self._tables, warm, taken)
        self._score = scoring.score
        self._warm = warm
        index = self._open_index(described["index"], folder / INDEX_FILE, np.flatnonzero(warm))
        items_ID, modal_items_ID = self._tables["items"], self._tables.get("modal_items")
        self._catalogue = Catalogue(self.item_ids.to_list(), warm, index, items_ID, modal_items_ID, self._score)
        user_ids = pl.read_parquet(folder / "users.parquet")["user_id"].to_list()
        self.users = UserIndex(scoring.users, user_ids, self.item_ids.to_list(), taken, self._limits)
        modalities = tuple(described["modalities"]) if new_items else ()
        self.new_items = self._open_encoder(folder / "encoder", modalities, scoring.recommender) if modalities else None

    def answer(self, columns: Mapping[str, Sequence[Any]], **params: Any) -> dict[str, list[Any]]:
        """Recommend to users and visitors, or score new items for them where the request contains images or texts.

        Args:
            columns: `user_id` or `history` (item ids) in each row; for new items also `image` and `text`, as
                `score_new` takes them.
            **params: Those of `Params`.

        Returns:
            Columns, as `recommend` or `score_new` returns them.

        Raises:
            UserError: As in `UserIndex.resolve`, `rank` and `score_new`; unknown columns or parameters; a request beyond
                the limits.
        """
        parsed = Params.parse(params)
        refuse_others("columns", columns, COLUMNS)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"columns: got {lengths} rows, expected the same number in each")
        rows = max(lengths.values(), default=0)
        items = {name: columns[name] for name in ("image", "text") if not all(map(is_absent, columns.get(name, ())))}
        self._limits.check("rows", rows, "rows")
        for name in ("items", "exclude"):
            self._limits.check("listed_items", len(getattr(parsed, name)), f"{name}: ids")
        if not items:
            self._limits.check("recommendations", rows * int(parsed.top_k), "rows times top_k")
        absent = [None] * rows
        requesters = self.users.resolve(columns.get("user_id", absent), columns.get("history", absent), parsed.unknown)
        return self.score_new(requesters, items) if items else self.recommend(requesters, parsed)

    def warm_up(self) -> None:
        """Answer a request of each kind, so that no client waits for lazy initialization."""
        visitor = self.users.resolve([None], [[]])
        self.recommend(visitor, Params())
        if self.new_items is not None:
            self.new_items.warm_up()

    def recommend(self, requesters: Requesters, params: Params) -> dict[str, list[Any]]:
        """Recommend, with ids and titles.

        Args:
            requesters: Users and visitors of the request, [B].
            params: Parameters of the request.

        Returns:
            `row` (from 0), `user_id` (None for a visitor), `known_user` (False for visitors and for users treated as such),
            `rank` (from 1), `item_id`, `title`, `score`, `warm` (whether the item has interactions), and `unknown_items`, the
            skipped items of the row's history (at rank 1, None below); best first, rows in the order of the request.

        Raises:
            UserError: As in `rank`.
        """
        items_BK, scores_BK = self.rank(requesters, params)
        found, ranks = torch.nonzero(items_BK != NO_ITEM, as_tuple=True)
        items, rows = items_BK[found, ranks].numpy(), found.tolist()
        return {
            "row": rows,
            "user_id": [requesters.names[row] for row in rows],
            "known_user": [requesters.known[row] for row in rows],
            "rank": (ranks + 1).tolist(),
            "item_id": self.item_ids[items].to_list(),
            "title": self.titles[items].to_list(),
            "score": scores_BK[found, ranks].tolist(),
            "warm": self._warm[items].tolist(),
            # Once per row: a long history repeated along a long list would make an answer of any size.
            "unknown_items": [
                None if rank else requesters.unknown_items[row] for row, rank in zip(rows, ranks.tolist())
            ],
        }

    def rank(self, requesters: Requesters, params: Params) -> tuple[Tensor, Tensor]:
        """Find the items with the highest scores.

        Args:
            requesters: Users and visitors of the request, [B].
            params: Parameters of the request; K items per row.

        Returns:
            Item indices int64 [B, K] and scores float32 [B, K], best first; `NO_ITEM` and -inf where no more are left.

        Raises:
            UserError: As in `Catalogue.choose`.
        """
        (index, vectors_ID), nothing = self._catalogue.choose(params), np.zeros(0, np.int64)
        seen = requesters.seen if params.exclude_seen else Interactions(nothing, nothing)
        number, k = len(self.item_ids), min(params.top_k, len(self.item_ids))
        if not params.diversity:
            return index.search(requesters.users_BD, seen, k)
        items_BP, scores_BP = index.search(requesters.users_BD, seen, min(pool_size(k), number))
        return diversified(items_BP, scores_BP, vectors_ID, k, float(params.diversity))

    def score_new(self, requesters: Requesters, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Score items that the model has never seen, by the cold score.

        Args:
            requesters: Users and visitors of the request, [B], one for each row.
            columns: `image` and `text` of each row's item, as `NewItems.encode` takes them.

        Returns:
            `row`, `user_id`, `known_user`, `score` and `unknown_items`, in the order of the rows.

        Raises:
            UserError: As in `NewItems.encode`, or a model that takes no new items.
        """
        if self.new_items is None:
            raise UserError(
                "new items: this model takes none; expected one whose features come from an encoder, not from arrays of "
                "the user's or from tables that were trained"
            )
        items_ND, items_B = self.new_items.encode(columns)
        scores_B = self._score(requesters.users_BD, items_ND).gather(1, items_B[:, None])[:, 0]
        return {
            "row": list(range(len(scores_B))),
            "user_id": list(requesters.names),
            "known_user": list(requesters.known),
            "score": scores_B.tolist(),
            "unknown_items": list(requesters.unknown_items),
        }

    def _open_index(self, kind: str, path: Path, warm: np.ndarray) -> Index:
        if kind == "faiss":
            return FaissIndex(path, self._tables["items"], warm)
        return ExactIndex(self._tables["items"], warm, self._score)

    def _open_encoder(self, folder: Path, modalities: tuple[str, ...], recommender: Recommender | None) -> "NewItems":
        from ptmrec_dist.serving.new_items import NewItems  # takes seconds; needed for new items only

        return NewItems(folder, modalities, self._tables, recommender, self._limits)
