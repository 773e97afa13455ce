"""Inference with a registered model: lists for users and visitors, scores of new items. See tables.py for its folder.

The full and the cold score are on different scales, so a list never mixes them: it ranks warm items by the full score, or
(`candidates`) cold or all items by the cold score.

Legend: B rows of a request, K list length, N distinct new items, D width of the scores.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.catalogue import ATTRIBUTE
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.tables.parquet import read_parquet
from ptmrec_dist.errors import Fault, UserError, first_line
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.serving.audience import Audience
from ptmrec_dist.serving.candidates import Catalogue
from ptmrec_dist.serving.digests import check_digests
from ptmrec_dist.serving.diversity import diversified, pool_size
from ptmrec_dist.serving.drift import Baseline
from ptmrec_dist.serving.explaining import Scored, reasons_for
from ptmrec_dist.serving.ids import is_absent
from ptmrec_dist.serving.index import FILE_NAME as INDEX_FILE
from ptmrec_dist.serving.index import ExactIndex, FaissIndex, Index
from ptmrec_dist.serving.limits import Limits
from ptmrec_dist.serving.observer import Observer
from ptmrec_dist.serving.packages import compare_packages
from ptmrec_dist.serving.params import Params, refuse_others
from ptmrec_dist.serving.tables import FILLER
from ptmrec_dist.serving.taken import read_known
from ptmrec_dist.serving.users import Requesters, UserIndex
from ptmrec_dist.serving.vectors import open_vectors

if TYPE_CHECKING:
    from ptmrec_dist.serving.new_items import NewItems

COLUMNS = ["user_id", "history", "image", "text", "item_id"]
"""Columns that a request may have."""
READS_NO_ENCODER = "expected one that reads features of an encoder, not IDs alone, the user's arrays or trained tables"
"""What a model that takes no new items lacks."""


class ServedModel:
    """A registered model, read into memory: its folder is not needed afterwards.

    Args:
        folder: Folder written by `registry.registering`.
        new_items: Whether to load the encoder, where the model has one; takes seconds and is needed for new items only.

    Raises:
        UserError: A file was changed since it was written, files that do not belong together, or the environment sets an
            invalid limit.
    """

    def __init__(self, folder: Path, new_items: bool = True) -> None:
        self._limits = Limits.from_environment()
        check_digests(folder)
        try:
            self._open(folder, new_items)
        except (UserError, Fault):
            raise
        except Exception as error:  # of many libraries, on files that are not trusted
            raise UserError(
                f"model: {folder} is not one that `ptmrec register` wrote ({first_line(error)}); register the run again"
            ) from error

    def _open(self, folder: Path, new_items: bool) -> None:
        described = json.loads((folder / "model.json").read_text())
        compare_packages(described.get("packages", {}))
        self.lineage: dict[str, str] = described["lineage"]
        self.baselines = {name: Baseline(**found) for name, found in described.get("baselines", {}).items()}
        self._id_columns: int | None = described.get("id_columns")
        self._observer: Observer | None = None
        self._tables = load_file(folder / "tables.safetensors")
        items = read_parquet(folder / "items.parquet")
        self.item_ids: pl.Series = items["item_id"]
        self.titles: pl.Series = items["title"]
        warm = items["warm"].to_numpy()
        taken = read_known(folder)
        self._scoring = open_vectors(folder, self._tables, warm, taken)
        vectors, self._score = self._scoring.users, self._scoring.score
        self._warm = warm
        index = self._open_index(described["index"], folder / INDEX_FILE, np.flatnonzero(warm))
        items_ID, modal_items_ID = self._tables["items"], self._tables.get("modal_items")
        kept = [name for name in items.columns if name.startswith(ATTRIBUTE)]
        self.attributes = items.select(pl.col(name).alias(name.removeprefix(ATTRIBUTE)) for name in kept)
        self._catalogue = Catalogue(
            self.item_ids.to_list(), self.attributes, warm, index, items_ID, modal_items_ID, self._score
        )
        user_ids = read_parquet(folder / "users.parquet")["user_id"].to_list()
        self.users = UserIndex(vectors, user_ids, self.item_ids.to_list(), taken, self._limits)
        self._audience = Audience(vectors, len(user_ids), taken, items_ID, modal_items_ID, warm, self._score)
        modalities = tuple(described["modalities"]) if new_items else ()
        self.new_items = self._open_encoder(folder / "encoder", modalities) if modalities else None

    def answer(self, columns: Mapping[str, Sequence[Any]], **params: Any) -> dict[str, list[Any]]:
        """Recommend to users and visitors, score new items for them where a request has images or texts, or find users.

        Args:
            columns: `user_id` or `history` (item ids) in each row; for new items also `image` and `text`, as
                `score_new` takes them; or `item_id` alone, to find the users that an item is for.
            **params: Those of `Params`.

        Returns:
            Columns, as `recommend`, `score_new` or `users_for` returns them.

        Raises:
            UserError: As in `UserIndex.resolve`, `rank`, `score_new` and `users_for`; unknown columns or parameters; a request
                beyond the limits.
        """
        parsed = Params.parse(params)
        refuse_others("columns", columns, COLUMNS)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"columns: got {lengths} rows, expected the same number in each")
        rows = max(lengths.values(), default=0)
        items = {name: columns[name] for name in ("image", "text") if not all(map(is_absent, columns.get(name, ())))}
        self._limits.check("rows", rows, "rows")
        for name in ("items", "exclude", "filters"):
            self._limits.check("listed_items", len(getattr(parsed, name)), f"{name}: entries")
        if not items:
            self._limits.check("recommendations", rows * int(parsed.top_k), "rows times top_k")
        absent = [None] * rows
        if not all(map(is_absent, columns.get("item_id", absent))):
            refuse_others("columns with item_id", columns, ["item_id"])
            return self.users_for(columns["item_id"], parsed)
        requesters = self.users.resolve(columns.get("user_id", absent), columns.get("history", absent), parsed.unknown)
        answer = self.score_new(requesters, items) if items else self.recommend(requesters, parsed)
        if self._observer is not None:
            self._observer.answered(requesters, parsed, answer)
        return answer

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every answer from now on.

        Args:
            observer: What watches.
        """
        self._observer = observer
        if self.new_items is not None:
            self.new_items.observer = observer

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
            skipped items of the row's history (at rank 1, None below); best first, rows in the order of the request. With
            `explain` also `because`, `score_from_ids`, `score_from_features` and `content_score`; see `Reasons`.

        Raises:
            UserError: As in `rank`.
        """
        items_BK, scores_BK = self.rank(requesters, params)
        found, ranks = torch.nonzero(items_BK != NO_ITEM, as_tuple=True)
        items, rows = items_BK[found, ranks].numpy(), found.tolist()
        reasons = self._reasons(requesters, params, found.numpy(), items) if params.explain else {}
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
            **reasons,
        }

    def users_for(self, item_ids: Sequence[Any], params: Params) -> dict[str, list[Any]]:
        """Find the users that items are for: full scores of items with interactions, cold ones of the others.

        Args:
            item_ids: Ids of items of the model.
            params: Parameters of the request, of which `top_k` (users per item) and `exclude_seen` apply.

        Returns:
            `row` (from 0), `item_id`, `warm`, `rank` (from 1), `user_id` and `score`; best first, rows in order.

        Raises:
            UserError: An id that is none, or that the model does not know; parameters that do not apply; as in
                `Audience.search`.
        """
        given = replace(params, top_k=Params.top_k, exclude_seen=Params.exclude_seen, unknown=Params.unknown)
        if given != Params():
            raise UserError("params: got others than top_k and exclude_seen with item_id, expected these alone")
        items = self.users.items_of(item_ids)
        number = len(self.users.user_ids)
        users_NK, scores_NK = self._audience.search(items, min(params.top_k, number), params.exclude_seen)
        found, ranks = torch.nonzero(users_NK != NO_ITEM, as_tuple=True)
        indices = [items[row] for row in found.tolist()]
        return {
            "row": found.tolist(),
            "item_id": self.item_ids[indices].to_list(),
            "warm": self._warm[indices].tolist(),
            "rank": (ranks + 1).tolist(),
            "user_id": [self.users.user_ids[user] for user in users_NK[found, ranks].tolist()],
            "score": scores_NK[found, ranks].tolist(),
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
            raise UserError(f"new items: this model takes none; {READS_NO_ENCODER}")
        items_ND, items_B = self.new_items.encode(columns)
        scores_B = self._score(requesters.users_BD, items_ND).gather(1, items_B[:, None])[:, 0]
        return {
            "row": list(range(len(scores_B))),
            "user_id": list(requesters.names),
            "known_user": list(requesters.known),
            "score": scores_B.tolist(),
            "unknown_items": list(requesters.unknown_items),
        }

    def _reasons(
        self, requesters: Requesters, params: Params, rows_N: np.ndarray, items_N: np.ndarray
    ) -> dict[str, list[Any]]:
        _, vectors_ID = self._catalogue.choose(params)
        id_columns: int | None = 0  # the cold score comes from features alone
        if vectors_ID is self._tables["items"]:
            id_columns = self._id_columns
            vectors_ID = vectors_ID * torch.from_numpy(self._warm)[:, None]  # of cold items they are untrained
        scored = Scored(vectors_ID, id_columns, self._tables.get("modal_items"), self._score)
        found = reasons_for(requesters, rows_N, items_N, scored)
        return {
            "because": [self.item_ids[items].to_list() for items in found.because],
            "score_from_ids": found.from_ids,
            "score_from_features": found.from_features,
            "content_score": found.content_scores,
        }

    def _open_index(self, kind: str, path: Path, warm: np.ndarray) -> Index:
        if kind == "faiss":
            return FaissIndex(path, self._tables["items"], warm)
        return ExactIndex(self._tables["items"], warm, self._score)

    def _open_encoder(self, folder: Path, modalities: tuple[str, ...]) -> "NewItems":
        from ptmrec_dist.serving.new_items import NewItems  # takes seconds; needed for new items only

        width = self._tables["modal_items"].shape[1]
        fillers = {name: self._tables[FILLER + name] for name in modalities if FILLER + name in self._tables}
        return NewItems(folder, modalities, self._scoring, width, self._limits, fillers)
