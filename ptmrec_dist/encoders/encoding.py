"""Encoding of all items of a data set: every rank encodes its shards, once.

An item that lacks a modality gets the mean of the other items' rows, which carries no information about it.

Legend: B local batch, I items, D width.
"""

import logging
from typing import Any, Protocol

import torch
from torch import Tensor

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import World, sum_over_ranks
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.errors import UserError
from ptmrec_dist.processes import is_first_rank
from ptmrec_dist.progress import Progress

_log = logging.getLogger(__name__)


class EncodesItems(Protocol):
    """What makes features of images and texts: an `Encoder`, or one that something else is joined with."""

    training: bool
    """Its mode."""

    @property
    def widths(self) -> dict[str, int]:
        """Width of each kind of features."""

    def encode(self, images: Tensor | None, texts: Tensor | None, *, items: Tensor | None = None) -> dict[str, Tensor]:
        """Encode a batch of items, as `Encoder.encode` does."""

    def train(self, mode: bool = True) -> Any:
        """Set the mode, as a module does."""


def encode_all(
    encoder: EncodesItems,
    stream: ItemStream,
    num_items: int,
    world: World,
    label: str | None = None,
    watch: Heartbeat | None = None,
) -> dict[str, Tensor]:
    """Encode every item of a stream and return the whole table on all ranks.

    Collective: every rank must call this.

    Args:
        encoder: The encoder, in its current state.
        stream: The items, in the order of the shards.
        num_items: I.
        world: This rank and the number of ranks.
        label: Name of the progress bar; None shows none.
        watch: Notified of every batch, as one step; None if the caller watches.

    Returns:
        Modality to float32 [I, D] on the CPU; rows of items that the stream leaves out are zero, those of items that lack
        the modality are the mean of all other rows.
    """
    tables = {modality: torch.zeros(num_items, width) for modality, width in encoder.widths.items()}
    training = encoder.training
    encoder.train(False)
    total, quiet = int(stream.counts[stream.shards_of(0)[stream.rank]].sum()), label is None or not world.is_first
    with torch.no_grad(), Progress(total=total, desc=label, unit="item", disable=quiet, leave=False) as bar:
        for number, batch in enumerate(stream.epoch(0), start=1):
            if watch is not None:
                watch.at(number)
            moved = batch.to(world.device)
            for modality, rows_BD in encoder.encode(moved.images, moved.texts, items=moved.items).items():
                tables[modality][batch.items] = rows_BD.cpu()
            bar.update(len(batch.items))
    encoder.train(training)
    if watch is not None:
        watch.between()
    return {name: _whole(name, table_ID, stream, world) for name, table_ID in tables.items()}


def reader_of(encoder: Encoder) -> Reader:
    """Return the preprocessing of an encoder's inputs.

    Args:
        encoder: The encoder.

    Returns:
        The reader of its towers.
    """
    return Reader(
        load_image=encoder.backbone.load_image if "image" in encoder.towers else None,
        tokenize=encoder.tokenize if "text" in encoder.towers else None,
    )


def require_content(dataset: Dataset, *modalities: str) -> None:
    """Refuse a data set that lacks the inputs of an encoder.

    Args:
        dataset: The packed data set.
        *modalities: Required modalities; by default any.

    Raises:
        UserError: It has neither images nor texts, or lacks one that is needed.
    """
    has = dataset.manifest.modalities
    if not has:
        raise UserError(f"shards: {dataset.folder} has no images and texts; pack it again with --items and --images")
    missing = [modality for modality in modalities if modality not in has]
    if missing:
        raise UserError(
            f"shards: {dataset.folder} has {has[0]}s alone, but {' and '.join(f'{name}s' for name in modalities)} are "
            f"needed; pack a catalogue that has {missing[0]}s, too"
        )


def check_image_size(dataset: Dataset, encoder: Encoder, strict: bool) -> None:
    """Warn, on the first rank, of images that were packed at fewer pixels than an encoder takes.

    Args:
        dataset: The packed data set.
        encoder: The encoder.
        strict: Refuse them instead of warning.

    Raises:
        UserError: There are such images, and `strict`.
    """
    needed, packed = encoder.backbone.image_size, dataset.manifest.image_size
    if "image" not in encoder.towers or packed is None or packed >= needed:
        return
    found = (
        f"shards: images of {dataset.folder} were reduced to {packed} pixels, but the encoder takes {needed}, so they are "
        f"enlarged again; pack with --image_size {needed}"
    )
    if strict:
        raise UserError(found)
    if is_first_rank():
        _log.warning("%s", found)


def count_absent(dataset: Dataset) -> dict[str, int]:
    """Count the items that lack a modality which others have.

    Args:
        dataset: The packed data set.

    Returns:
        Modality to number of items; without modalities that no item lacks.
    """
    counts = {modality: int((~dataset.has(modality)).sum()) for modality in dataset.manifest.modalities}
    return {modality: count for modality, count in counts.items() if count}


def _whole(name: str, table_ID: Tensor, stream: ItemStream, world: World) -> Tensor:
    """Put the rows of all ranks together, and fill those of items that lack the modality."""
    # Every row was written by one rank and is zero on the others, so the sum is exact.
    whole_ID = sum_over_ranks(table_ID.to(world.device)).cpu()
    if name not in ("image", "text"):  # vectors made of both: every item has some
        return whole_ID
    return _filled(whole_ID, torch.from_numpy(stream.has(name)))


def _filled(table_ID: Tensor, has_I: Tensor) -> Tensor:
    """Fill missing rows with the mean of the others."""
    if has_I.all():
        return table_ID
    read_I = has_I & table_ID.any(dim=1)
    mean_D = table_ID[read_I].mean(dim=0) if read_I.any() else table_ID.new_zeros(table_ID.shape[1])
    return table_ID.where(has_I[:, None], mean_D)
