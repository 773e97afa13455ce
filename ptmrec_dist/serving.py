"""A model on its own, as it is registered: what its folder holds and how it answers. JSON, Parquet and safetensors.

    model.json           modalities of new items, lineage
    tables.safetensors   users [U, D], items [I, D]; of recommenders that read features also modal_users [U, d'],
                         modal_items [I, d'], projection [sum of d_m, d'], projection_bias [d']
    users.parquet        user_id
    items.parquet        item_id, title, warm
    seen.parquet         user_index, item_index
    encoder/             backbone, and encoder.safetensors with what was tuned inside it; where new items are taken

Items that the split held out whole are cold, the others warm. Warm items have the full score, users . items; cold and
new ones, whose IDs say nothing, have the cold score, modal_users . modal_items. The two share no scale, so a list never
mixes them: it ranks the warm items by the full score, or (`include_cold`) all items by the cold score.

Legend: U users, I items, B rows asked for, K list length, P probing rows, N new items, D and d' widths of the scores,
d_m width of a modality's features.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.images import on_white
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import NO_ITEM, Seen, top_items
from ptmrec_dist.recommenders.base import Features, Recommender
from ptmrec_dist.training.loaded import LoadedRun
from ptmrec_dist.training.runs import ENCODER_FILE, save_tensors

if TYPE_CHECKING:
    from ptmrec_dist.encoders.tuning import Encoder

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 50_000_000
_ENCODER_BATCH = 32
_NAMES_SHOWN = 5


class ServedModel:
    """A model that recommends, opened from its folder.

    Args:
        folder: Folder that `write_tables` and `registry.register` filled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.modalities: tuple[str, ...] = tuple(json.loads((folder / "model.json").read_text())["modalities"])
        self._tables = load_file(folder / "tables.safetensors")
        user_ids = pl.read_parquet(folder / "users.parquet")["user_id"].to_list()
        self._user_rows = {user: row for row, user in enumerate(user_ids)}
        items = pl.read_parquet(folder / "items.parquet")
        self._item_ids, self._titles = items["item_id"].to_list(), items["title"].to_list()
        self._warm = np.flatnonzero(items["warm"].to_numpy())
        seen = pl.read_parquet(folder / "seen.parquet")
        self._seen = Seen(Interactions(seen["user_index"].to_numpy(), seen["item_index"].to_numpy()), len(user_ids))

    def answer(self, columns: Mapping[str, Sequence[Any]], **params: Any) -> dict[str, list[Any]]:
        """Recommend to users, or score new items for them where the request brings images or texts.

        Args:
            columns: `user_id`; for new items also `image` and `text`, as `score_new` takes them.
            **params: `top_k`, `exclude_seen` and `include_cold` of `recommend`.

        Returns:
            Columns, as `recommend` or `score_new` returns them.

        Raises:
            UserError: As in `recommend` and `score_new`.
        """
        users = [str(user) for user in columns["user_id"]]
        if "image" in columns or "text" in columns:
            return self.score_new(users, columns)
        return self.recommend(users, **params)

    def recommend(
        self, users: Sequence[str], top_k: int = 10, exclude_seen: bool = True, include_cold: bool = False
    ) -> dict[str, list[Any]]:
        """Find the items with the highest scores.

        Args:
            users: User ids [B].
            top_k: Items a user K; fewer where a user has no more left.
            exclude_seen: Leave out what the user took in training.
            include_cold: Rank all items by the cold score, not the warm ones by the full score.

        Returns:
            `user_id`, `rank` (from 1), `item_id`, `title`, `score`; best first, users in the order asked for.

        Raises:
            UserError: Unknown users, `top_k` below 1, or `include_cold` of an ID-only recommender.
        """
        if top_k < 1:
            raise UserError(f"top_k: got {top_k}, expected 1 or more")
        if include_cold and "modal_users" not in self._tables:
            raise UserError("include_cold: this model knows items by their IDs only; ask without it")
        kind = "modal_" if include_cold else ""
        users_UD, items_ID = self._tables[f"{kind}users"], self._tables[f"{kind}items"]
        rows_B = self._rows(users)
        candidates = None if include_cold else self._warm
        seen = self._seen if exclude_seen else None
        items_BK, scores_BK = top_items(users_UD[rows_B], items_ID, rows_B, seen, top_k, candidates)
        who, ranks = torch.nonzero(items_BK != NO_ITEM, as_tuple=True)
        items = items_BK[who, ranks].tolist()
        return {
            "user_id": [users[row] for row in who.tolist()],
            "rank": (ranks + 1).tolist(),
            "item_id": [self._item_ids[item] for item in items],
            "title": [self._titles[item] for item in items],
            "score": scores_BK[who, ranks].tolist(),
        }

    def score_new(self, users: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Score items that the model has never seen, by the cold score.

        Args:
            users: User ids [B], one for each row.
            columns: `image` (JPEG or PNG, base64) and `text` of each row's item, those of them that the model reads.

        Returns:
            `user_id` and `score`, in the order of the rows.

        Raises:
            UserError: Unknown users, a column or a text that is missing, an image that cannot be decoded or is too
                large, or a model that takes no new items.
        """
        if not self.modalities:
            raise UserError(
                "new items: this model takes none; expected one that reads features, and from an encoder, not from "
                "tables that were trained"
            )
        missing = [modality for modality in self.modalities if modality not in columns]
        if missing:
            raise UserError(f"new items: got no column {', '.join(missing)}; expected {', '.join(self.modalities)}")
        rows_B = self._rows(users)
        asked = list(zip(*(columns[modality] for modality in self.modalities), strict=True))
        distinct = list(dict.fromkeys(asked))
        vectors_ND = self._encode_new(distinct)
        place = {item: row for row, item in enumerate(distinct)}
        vectors_BD = vectors_ND[[place[item] for item in asked]]
        scores_B = (self._tables["modal_users"][rows_B] * vectors_BD).sum(dim=1)
        return {"user_id": list(users), "score": scores_B.tolist()}

    @cached_property
    def _encoder(self) -> "Encoder":
        from ptmrec_dist.encoders.tuning import load_encoder  # seconds, which only new items need to wait for

        tuned = self._folder / "encoder" / ENCODER_FILE
        return load_encoder(self._folder / "encoder", tuned if tuned.is_file() else None, self.modalities)

    @torch.no_grad()
    def _encode_new(self, items: list[tuple[Any, ...]]) -> Tensor:
        """Image and text of new items to what stands for them in the cold score, [N, d']."""
        inputs = dict(zip(self.modalities, zip(*items)))
        images = [decode_image(image) for image in inputs.get("image", ())]
        texts = list(inputs.get("text", ()))
        if not all(isinstance(text, str) and text for text in texts):
            raise UserError("text: a row has none, expected the text of a new item in every row")
        parts = []
        for start in range(0, len(items), _ENCODER_BATCH):
            batch = slice(start, start + _ENCODER_BATCH)
            pixels = torch.stack([*map(self._encoder.backbone.load_image, images[batch])]) if images else None
            tokens = self._encoder.tokenize(texts[batch]) if texts else None
            features = self._encoder.encode(pixels, tokens)
            parts.append(torch.cat([features[modality] for modality in self.modalities], dim=1))
        vectors_ND: Tensor = torch.cat(parts) @ self._tables["projection"] + self._tables["projection_bias"]
        return vectors_ND

    def _rows(self, users: Sequence[str]) -> np.ndarray:
        unknown = [user for user in dict.fromkeys(users) if user not in self._user_rows]
        if unknown:
            shown = ", ".join(map(repr, unknown[:_NAMES_SHOWN])) + (", ..." if len(unknown) > _NAMES_SHOWN else "")
            raise UserError(
                f"user_id: got {len(unknown)} unknown ({shown}), expected some of the {len(self._user_rows)} users of "
                "the training data"
            )
        return np.array([self._user_rows[user] for user in users], dtype=np.int64)


def write_tables(folder: Path, run: LoadedRun, modalities: Sequence[str], lineage: Mapping[str, str]) -> None:
    """Write a model's folder, all but its encoder.

    Args:
        folder: Folder to write into.
        run: A finished run.
        modalities: What new items must bring; none where they cannot be encoded.
        lineage: Where the model comes from.

    Raises:
        UserError: Weights that are not finite, or a cold score that is not linear in the features.
    """
    tables = _tables_of(run.recommender, run.features)
    for name, table in tables.items():
        if not torch.isfinite(table).all():
            raise UserError(f"run: {name} of {run.folder} hold NaN or infinite values; train again with a lower --lr")
    dataset, train = run.dataset, run.dataset.interactions("train")
    cold = np.concatenate([dataset.cold_items(part) for part in ("cold_validation", "cold_test")])
    warm = ~np.isin(np.arange(dataset.num_items), cold)
    save_tensors(folder / "tables.safetensors", tables)
    pl.DataFrame({"user_id": dataset.user_ids}).write_parquet(folder / "users.parquet")
    items = {"item_id": dataset.item_ids, "title": dataset.titles, "warm": warm}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_index": train.users, "item_index": train.items}).write_parquet(folder / "seen.parquet")
    (folder / "model.json").write_text(json.dumps({"modalities": list(modalities), "lineage": dict(lineage)}, indent=1))


@torch.no_grad()
def _tables_of(recommender: Recommender, features: Features) -> dict[str, Tensor]:
    recommender.eval()
    users_UD, items_ID = recommender.representations(features)
    tables = {"users": users_UD, "items": items_ID}
    if not recommender.multimodal:
        return tables
    modal_users, modal_items = recommender.cold_representations(features, torch.arange(len(items_ID)))
    projection, bias = _read_projection(recommender, features)
    projected = torch.cat([features[modality] for modality in recommender.modalities], dim=1) @ projection + bias
    if not torch.allclose(projected, modal_items, rtol=1e-3, atol=1e-4 * float(modal_items.abs().max())):
        raise UserError(f"run: {type(recommender).__name__} scores cold items by no linear map of their features")
    return tables | {
        "modal_users": modal_users,
        "modal_items": modal_items,
        "projection": projection,
        "projection_bias": bias,
    }


def _read_projection(recommender: Recommender, features: Features) -> tuple[Tensor, Tensor]:
    """Read the affine map of the cold score off a recommender, by what it makes of zero and of every unit vector."""
    widths = [features[modality].shape[1] for modality in recommender.modalities]
    probes_PD = torch.cat([torch.zeros(1, sum(widths)), torch.eye(sum(widths))])
    tables = dict(zip(recommender.modalities, probes_PD.split(widths, dim=1)))
    answers_PD = recommender.cold_items(tables, torch.arange(len(probes_PD)))
    return answers_PD[1:] - answers_PD[0], answers_PD[0]


def decode_image(encoded: str) -> Image.Image:
    """Decode an image that came with a request, from someone who is not to be trusted.

    Args:
        encoded: JPEG or PNG in base64.

    Returns:
        The image upright in RGB, transparency shown on white, as `ptmrec pack` stores images.

    Raises:
        UserError: Not such an image, or too large.
    """
    limit = f"expected a JPEG or PNG of at most {MAX_IMAGE_BYTES} bytes and {MAX_IMAGE_PIXELS} pixels, in base64"
    if len(str(encoded)) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise UserError(f"image: got {len(encoded)} characters; {limit}")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        return on_white(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's plugins raise all kinds of errors on damaged files
        raise UserError(f"image: cannot be decoded ({error}); {limit}") from error
