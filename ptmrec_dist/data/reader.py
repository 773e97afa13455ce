"""An item of a shard as an encoder takes it: preprocessing of images and texts, and decoding against what was packed.

Legend: B local batch, N tokens.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from ptmrec_dist.data.manifest import item_digest
from ptmrec_dist.errors import Fault


@dataclass(frozen=True)
class Reader:
    """Preprocessing of an encoder's inputs; a modality without a reader is not decoded."""

    load_image: Callable[[Image.Image], Tensor] | None = None
    """PIL image to uint8 [3, H, W]."""
    tokenize: Callable[[list[str]], Tensor] | None = None
    """Texts to token ids int64 [B, N]."""

    def collate(self, images: list[Tensor | None], texts: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Stack decoded items; no items give empty tensors of the right trailing shape.

        Args:
            images: B images uint8 [3, H, W]; an item without one gets a blank one, whose features are not read.
            texts: B texts, empty where an item has none.

        Returns:
            uint8 [B, 3, H, W] and int64 [B, N], None where there is no reader.
        """
        pixels = tokens = None
        if self.load_image is not None:
            rows = [self._blank if image is None else image for image in images]
            pixels = torch.stack(rows or [self._blank])[: len(rows)]
        if self.tokenize is not None:
            tokens = self.tokenize(texts) if texts else self.tokenize([""])[:0]
        return pixels, tokens

    @cached_property
    def _blank(self) -> Tensor:
        """Stands for the image of an item without one."""
        assert self.load_image is not None
        return self.load_image(Image.new("RGB", (8, 8)))


def decode_item(key: str, files: Mapping[str, bytes], reader: Reader, digests: np.ndarray) -> dict[str, Any]:
    """Decode one item of a shard.

    Args:
        key: Its key, the item index in nine digits.
        files: Its files by ending: `jpg`, `txt` or both.
        reader: How to decode.
        digests: `Dataset.item_digests`.

    Returns:
        `item`, `image` (None without one or without an image reader) and `text` (empty without one).

    Raises:
        Fault: Image or text is missing, the image cannot be read, or the content is not what was packed.
    """
    jpeg, text = files.get("jpg", b""), files.get("txt", b"")
    genuine = item_digest(hashlib.sha256(jpeg).hexdigest(), text) == digests[int(key)].tobytes().hex()
    if not genuine and not {"jpg", "txt"} <= files.keys():
        raise Fault(f"item {int(key)} lacks its image or text")
    image = None
    if reader.load_image is not None and jpeg:
        try:
            with decoded(io.BytesIO(jpeg)) as picture:
                image = reader.load_image(to_rgb(picture))
        except BadImageError as bad:
            raise Fault(f"the image of item {int(key)} cannot be read: {bad}") from bad
    if not genuine:
        raise Fault(f"item {int(key)} is not the one that was packed")
    return {"item": int(key), "image": image, "text": text.decode()}
