"""New items of a request: from images and texts to item vectors of the cold score.

Legend: B rows, N distinct new items, D width of the scores, d_m width of a modality's features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ptmrec_dist.encoders.encoder import load_encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.ids import is_absent, shown
from ptmrec_dist.serving.image_source import ImageSource
from ptmrec_dist.serving.images import read_image
from ptmrec_dist.serving.limits import Limits
from ptmrec_dist.serving.observer import Observer
from ptmrec_dist.serving.vectors import Scoring
from ptmrec_dist.training.fused_encoder import encoder_of
from ptmrec_dist.training.records import ENCODER_FILE

_ENCODER_BATCH = 32

Item = tuple[str, ...]
"""Contents of a row's item, in the order of the modalities."""


class NewItems:
    """Encodes new items.

    Args:
        folder: Folder of the encoder.
        modalities: Modalities that it reads: `image`, `text`.
        scoring: What the model scores with, which makes vectors of features.
        width: Width of these vectors D.
        limits: Limits of a request.
        fillers: Modality to the features [d_m] that stand for it where an item lacks it, of modalities that items may lack.
    """

    def __init__(
        self,
        folder: Path,
        modalities: tuple[str, ...],
        scoring: Scoring,
        width: int,
        limits: Limits,
        fillers: Mapping[str, Tensor],
    ) -> None:
        tuned = folder / ENCODER_FILE
        self._encoder = load_encoder(folder, tuned if tuned.is_file() else None, modalities)
        self._features = encoder_of(scoring.recommender, self._encoder)
        self.modalities, self.width, self.fillers = modalities, width, fillers
        self._cold_vectors, self._limits = scoring.cold_vectors, limits
        self._lock = Lock()
        self.observer: Observer | None = None

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
        """Encode the items of rows; an item of several rows is encoded once.

        Args:
            columns: `image` (as `ImageSource.read` takes it) and `text` of each row's item, those that the model reads. Either
                may be absent or None where there is one of `fillers` for it.

        Returns:
            Vectors of the distinct items, float32 [N, D], and which of them each row has, int64 [B].

        Raises:
            UserError: A missing column, cells that are no strings, an image that is refused, more than the limits.
        """
        missing = [name for name in self.modalities if name not in columns and name not in self.fillers]
        if missing:
            raise UserError(f"new items: got no column {', '.join(missing)}; expected {', '.join(self.modalities)}")
        nothing = [None] * len(next(iter(columns.values())))
        cells = ([self._cell(name, value) for value in columns.get(name, nothing)] for name in self.modalities)
        items_B = list(zip(*cells, strict=True))
        for row, item in enumerate(items_B):
            self._check(item, row)
        distinct = list(dict.fromkeys(items_B))
        self._limits.check("new_items", len(distinct), "new items")
        number_of = {item: number for number, item in enumerate(distinct)}
        row_of = {item: row for row, item in reversed(list(enumerate(items_B)))}
        source = ImageSource(self._limits)
        batches = [distinct[start : start + _ENCODER_BATCH] for start in range(0, len(distinct), _ENCODER_BATCH)]
        # Decoded batch by batch: many large images at once would not fit into memory.
        vectors_ND = torch.cat(
            [self.vectors(self._images(batch, row_of, source), self._texts(batch)) for batch in batches]
        )
        return vectors_ND, torch.tensor([number_of[item] for item in items_B])

    def warm_up(self) -> None:
        """Encode a dummy item."""
        image = [Image.new("RGB", (32, 32))] if "image" in self.modalities else []
        self.vectors(image, ["an item"] if "text" in self.modalities else [])

    def _cell(self, modality: str, value: Any) -> Any:
        """What a row gives for a modality, empty text where it gives nothing and may lack it."""
        lacks = is_absent(value) or (isinstance(value, str) and not value.strip())
        return "" if lacks and modality in self.fillers else value

    def _check(self, item: tuple[Any, ...], row: int) -> None:
        if not any(item):
            raise UserError(f"row {row}: got none of {', '.join(self.modalities)}, expected one or more of a new item")
        for modality, value in zip(self.modalities, item):
            if value == "" and modality in self.fillers:
                continue
            if not isinstance(value, str) or not value.strip():
                got = "nothing" if is_absent(value) else shown(value)
                raise UserError(f"row {row}: {modality}: got {got}, expected the {modality} of a new item")
            if modality == "text":
                self._limits.check("text_characters", len(value), f"row {row}: characters of the text")
                if not value.isascii() and value != value.encode(errors="ignore").decode():
                    raise UserError(f"row {row}: text: got half of a surrogate pair, expected Unicode text")

    def _images(
        self, items: Sequence[Item], row_of: Mapping[Item, int], source: ImageSource
    ) -> list[Image.Image | None]:
        if "image" not in self.modalities:
            return []
        column = self.modalities.index("image")
        return [self._image(item[column], row_of[item], source) if item[column] else None for item in items]

    def _image(self, given: str, row: int, source: ImageSource) -> Image.Image:
        try:
            image = read_image(source.read(given))
        except UserError as error:
            raise UserError(f"row {row}: {error}") from error
        if self.observer is not None:
            self.observer.read_image(*image.size)
        return image

    def _texts(self, items: Sequence[Item]) -> list[str]:
        return [item[self.modalities.index("text")] for item in items] if "text" in self.modalities else []

    @torch.no_grad()
    def vectors(self, images: Sequence[Image.Image | None], texts: list[str]) -> Tensor:
        """Compute the vectors of items.

        Args:
            images: RGB image of each item, None where it lacks one; none at all where the model reads texts alone.
            texts: Text of each item, empty where it lacks one; none at all where the model reads images alone. Items lack
                modalities with `fillers` alone.

        Returns:
            Vectors of the cold score, float32 [N, D].
        """
        load_image = self._encoder.backbone.load_image
        loaded = [None if image is None else load_image(image) for image in images]
        pixels, tokens = reader_of(self._encoder).collate(loaded, texts)
        with self._lock:  # hooks of a tuned tower may keep state between blocks; torch uses all cores anyway
            features = self._features.encode(pixels, tokens)
        has = {"image": [image is not None for image in images], "text": [text != "" for text in texts]}
        for modality, filler_D in self.fillers.items():
            features[modality] = features[modality].where(torch.tensor(has[modality])[:, None], filler_D)
        ordered = {modality: features[modality] for modality in self.modalities}
        return self._cold_vectors(ordered | features)
