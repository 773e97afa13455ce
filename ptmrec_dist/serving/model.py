"""How a registered model answers: lists for users and visitors, scores of new items. tables.py says what its folder holds.

The full and the cold score share no scale, so a list never mixes them: it ranks the warm items by the full score, or
(`include_cold`) all items by the cold score.

Legend: B rows asked for, K list length, N new items, D and d' widths of the scores.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
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
from ptmrec_dist.serving.digests import check_digests
from ptmrec_dist.serving.image_source import ImageSource
from ptmrec_dist.serving.images import read_image
from ptmrec_dist.serving.index import FILE_NAME as INDEX_FILE
from ptmrec_dist.serving.index import ExactIndex, FaissIndex, Index
from ptmrec_dist.serving.limits import Limits
from ptmrec_dist.serving.people import Askers, People
from ptmrec_dist.training.records import ENCODER_FILE

if TYPE_CHECKING:
    from ptmrec_dist.encoders.encoder import Encoder

_ENCODER_BATCH = 32


class ServedModel:
    """A model that recommends, opened from its folder.

    Args:
        folder: Folder that `registry.registering` filled.

    Raises:
        UserError: A file is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self._limits = Limits.from_environment()
        check_digests(folder)
        self._folder = folder
        described = json.loads((folder / "model.json").read_text())
        self.modalities: tuple[str, ...] = tuple(described["modalities"])
        self._tables = load_file(folder / "tables.safetensors")
        items = pl.read_parquet(folder / "items.parquet")
        self.item_ids: pl.Series = items["item_id"]
        self.titles: pl.Series = items["title"]
        warm = items["warm"].to_numpy()
        self._index = self._open_index(described["index"], np.flatnonzero(warm))
        seen = pl.read_parquet(folder / "seen.parquet")
        taken = Interactions(seen["user_index"].to_numpy(), seen["item_index"].to_numpy())
        user_ids = pl.read_parquet(folder / "users.parquet")["user_id"].to_list()
        self.people = People(self._tables, user_ids, self.item_ids.to_list(), warm, taken)

    def answer(self, columns: Mapping[str, Sequence[Any]], **params: Any) -> dict[str, list[Any]]:
        """Recommend to users and visitors, or score new items for them where the request brings images or texts.

        Args:
            columns: `user_id` or `history` (item ids) in each row; for new items also `image` and `text`, as
                `score_new` takes them.
            **params: `top_k`, `exclude_seen` and `include_cold` of `rank`.

        Returns:
            Columns, as `recommend` or `score_new` returns them.

        Raises:
            UserError: As in `People.ask`, `rank` and `score_new`.
        """
        rows = max(map(len, columns.values()), default=0)
        absent = [None] * rows
        askers = self.people.ask(columns.get("user_id", absent), columns.get("history", absent))
        if "image" in columns or "text" in columns:
            return self.score_new(askers, columns)
        return self.recommend(askers, **params)

    def recommend(self, askers: Askers, **params: Any) -> dict[str, list[Any]]:
        """Recommend, in words.

        Args:
            askers: Who asks, [B].
            **params: As in `rank`.

        Returns:
            `row` (from 0), `user_id` (None for a visitor), `rank` (from 1), `item_id`, `title`, `score`; best first,
            people in the order asked for.

        Raises:
            UserError: As in `rank`.
        """
        items_BK, scores_BK = self.rank(askers, **params)
        who, ranks = torch.nonzero(items_BK != NO_ITEM, as_tuple=True)
        items = items_BK[who, ranks].numpy()
        return {
            "row": who.tolist(),
            "user_id": [askers.names[row] for row in who.tolist()],
            "rank": (ranks + 1).tolist(),
            "item_id": self.item_ids[items].to_list(),
            "title": self.titles[items].to_list(),
            "score": scores_BK[who, ranks].tolist(),
        }

    def rank(
        self, askers: Askers, top_k: int = 10, exclude_seen: bool = True, include_cold: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Find the items with the highest scores.

        Args:
            askers: Who asks, [B].
            top_k: Items a person K.
            exclude_seen: Leave out what a user took in training, or what a visitor's history holds.
            include_cold: Rank all items by the cold score, not the warm ones by the full score.

        Returns:
            Item indices int64 [B, K] and scores float32 [B, K], best first; `NO_ITEM` and -inf where no more are left.

        Raises:
            UserError: `top_k` below 1, or `include_cold` of an ID-only recommender.
        """
        if top_k < 1:
            raise UserError(f"top_k: got {top_k}, expected 1 or more")
        vectors_BD, index = (
            (askers.modal_users_BD, self._cold_index) if include_cold else (askers.users_BD, self._index)
        )
        if vectors_BD is None:
            raise UserError("include_cold: this model knows items by their IDs only; ask without it")
        nothing = np.zeros(0, np.int64)
        seen = askers.seen if exclude_seen else Interactions(nothing, nothing)
        return index.search(vectors_BD, seen, min(top_k, len(self.item_ids)))

    def score_new(self, askers: Askers, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Score items that the model has never seen, by the cold score.

        Args:
            askers: Who asks, [B], one for each row.
            columns: `image` (as `read_image` takes it) and `text` of each row's item, those of them that the model reads.

        Returns:
            `row`, `user_id` and `score`, in the order of the rows.

        Raises:
            UserError: A column or a text that is missing, an image that is refused, or a model that takes no new items.
        """
        if not self.modalities or askers.modal_users_BD is None:
            raise UserError(
                "new items: this model takes none; expected one that reads features, and from an encoder, not from "
                "tables that were trained"
            )
        missing = [modality for modality in self.modalities if modality not in columns]
        if missing:
            raise UserError(f"new items: got no column {', '.join(missing)}; expected {', '.join(self.modalities)}")
        asked = list(zip(*(columns[modality] for modality in self.modalities), strict=True))
        distinct = list(dict.fromkeys(asked))
        vectors_ND = self._encode_new(distinct)
        place = {item: row for row, item in enumerate(distinct)}
        vectors_BD = vectors_ND[[place[item] for item in asked]]
        scores_B = (askers.modal_users_BD * vectors_BD).sum(dim=1)
        return {"row": list(range(len(asked))), "user_id": list(askers.names), "score": scores_B.tolist()}

    def _open_index(self, kind: str, warm: np.ndarray) -> Index:
        if kind == "faiss":
            return FaissIndex(self._folder / INDEX_FILE, self._tables["items"], warm)
        return ExactIndex(self._tables["items"], warm)

    @cached_property
    def _cold_index(self) -> Index:
        items = self._tables.get("modal_items", torch.zeros(0, 0))
        return ExactIndex(items, np.arange(len(items)))

    @cached_property
    def _encoder(self) -> "Encoder":
        from ptmrec_dist.encoders.encoder import load_encoder  # seconds, which only new items need to wait for

        tuned = self._folder / "encoder" / ENCODER_FILE
        return load_encoder(self._folder / "encoder", tuned if tuned.is_file() else None, self.modalities)

    @torch.no_grad()
    def _encode_new(self, items: list[tuple[Any, ...]]) -> Tensor:
        """Image and text of new items to what stands for them in the cold score, [N, d']."""
        inputs = dict(zip(self.modalities, zip(*items)))
        texts = list(inputs.get("text", ()))
        if not all(isinstance(text, str) and text for text in texts):
            raise UserError("text: a row has none, expected the text of a new item in every row")
        source = ImageSource(self._limits)
        parts = []
        for start in range(0, len(items), _ENCODER_BATCH):
            batch = slice(start, start + _ENCODER_BATCH)
            # Decoded as they are needed: many large pictures at once would not fit into memory.
            images = [read_image(source.read(image)) for image in inputs.get("image", ())[batch]]
            pixels = [self._encoder.backbone.load_image(image) for image in images]
            tokens = self._encoder.tokenize(texts[batch]) if texts else None
            features = self._encoder.encode(torch.stack(pixels) if pixels else None, tokens)
            parts.append(torch.cat([features[modality] for modality in self.modalities], dim=1))
        vectors_ND: Tensor = torch.cat(parts) @ self._tables["projection"] + self._tables["projection_bias"]
        return vectors_ND
