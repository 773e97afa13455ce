"""Extraction of the features of all items: every rank encodes its shards, once.

An item that lacks a modality gets the mean of the other items' rows, which carries no information about it.

Legend: B local batch, I items, D width.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ptmrec_dist.config import FeaturesConfig
from ptmrec_dist.data.arrays import read_array, unit_rows
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import (
    FeatureManifest,
    check_replaceable,
    open_features,
    read_feature_manifest,
    write_features,
)
from ptmrec_dist.data.reader import Reader
from ptmrec_dist.data.stream import ItemBatch, ItemStream
from ptmrec_dist.distributed import World, barrier, join_world, sum_over_ranks
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import exclusive_out

_log = logging.getLogger(__name__)
_ROWS_OF_SIMILAR_LENGTH = 64


@exclusive_out
def extract_features(config: FeaturesConfig) -> None:
    """Extract the frozen encoder's features of every item (`ptmrec features`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Shards without content, an encoder that cannot be loaded, features to reuse that are of other items or of
            another encoder, an output folder with other content.
        Fault: A rank was lost, or items cannot be read.
    """
    dataset = Dataset(config.shards)
    check_replaceable(config.out)
    if config.encoder is None:
        _import_arrays(config, dataset)
        return
    require_content(dataset)
    backbone = load_backbone(config.encoder, config.raw)
    if config.reuse is not None:
        _copy(config.reuse, config.out, dataset, backbone)
        return
    encoder = Encoder(backbone, _modalities(dataset, backbone), config.precision)
    check_image_size(dataset, encoder, config.strict)
    world = join_world(config.device, config.timeout)
    encoder.to(world.device)
    reader, cut = reader_of(encoder), _CutTexts(encoder)
    if reader.tokenize is not None:
        reader = replace(reader, tokenize=cut.tokenize)
    stream = ItemStream(dataset, world.rank, world.size, config.batch_size, reader, workers=config.workers)
    with Heartbeat(world, config.timeout, "run the same command again") as watch:
        tables = encode_all(encoder, stream, dataset.num_items, world, "features", watch, sort_by_length=True)
    cut_texts = int(sum_over_ranks(torch.tensor(cut.count, device=world.device)))
    if world.is_first:
        manifest = write_features(
            config.out,
            {modality: table.numpy() for modality, table in tables.items()},
            data=dataset.fingerprint,
            encoder=backbone.fingerprint,
            settings={**config.encoder.recorded(), **({"raw": True} if config.raw else {})},
            filled={name: count for name, count in count_absent(dataset).items() if name in tables},
            cut_texts=cut_texts,
            content=dataset.content,
        )
        _report(dataset, config.out, manifest)
    barrier()


def _modalities(dataset: Dataset, backbone: Backbone) -> tuple[str, ...]:
    """Those that both the data set and the encoder have."""
    has = dataset.manifest.modalities
    common = tuple(modality for modality in has if modality in backbone.modalities)
    if not common:
        raise UserError(
            f"encoder: it reads {' and '.join(backbone.modalities)}, but {dataset.folder} has {' and '.join(has)} alone; "
            f"choose an encoder of {' or '.join(has)}s"
        )
    return common


class _CutTexts:
    """Counts the texts that an encoder cuts off while it tokenizes them."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.count = encoder, 0

    def tokenize(self, texts: list[str]) -> Tensor:
        ids_BN, cut = self.encoder.backbone.tokenized(texts)
        self.count += cut
        return self.encoder.towers["text"].trimmed(ids_BN)


def _copy(folder: Path, out: Path, dataset: Dataset, backbone: Backbone) -> None:
    """Write features that the encoder gave for another split of the same items; there is nothing to divide among ranks."""
    if os.environ.get("RANK", "0") != "0":
        return
    made = read_feature_manifest(folder)
    for name, before, now in (
        ("encoder", made.encoder, backbone.fingerprint),
        ("images and texts", made.content, dataset.content),
    ):
        if before != now:
            raise UserError(
                f"reuse: {folder} was made from {name} {(before or 'none')[:12]}, expected {now[:12]}; leave out --reuse to "
                "compute the features"
            )
    store = open_features(folder, made.data, dataset.num_items)
    manifest = write_features(
        out,
        store.tables,
        data=dataset.fingerprint,
        encoder=made.encoder,
        settings=made.encoder_settings,
        filled=made.filled,
        cut_texts=made.cut_texts,
        content=made.content,
    )
    print(f"reused {folder}")
    _report(dataset, out, manifest)


def _import_arrays(config: FeaturesConfig, dataset: Dataset) -> None:
    """Write arrays supplied by the user as features; there is nothing to divide among ranks."""
    if os.environ.get("RANK", "0") != "0":
        return
    files = {"image": config.image_npy, "text": config.text_npy}
    tables = {}
    for modality, path in files.items():
        if path is not None:
            table, matched = read_array(path, f"{modality}_npy", dataset, config.item_column)
            tables[modality] = table if config.raw else unit_rows(table)
            print(f"{modality}: rows of {path} are matched by {matched}")
    _report(dataset, config.out, write_features(config.out, tables, data=dataset.fingerprint))


def _report(dataset: Dataset, out: Path, manifest: FeatureManifest) -> None:
    widths = ", ".join(f"{modality} {width}" for modality, width in manifest.widths.items())
    print(f"{dataset.num_items} items ({widths}) in {out}, fingerprint {manifest.fingerprint[:12]}")
    for modality, count in manifest.filled.items():
        print(f"{count} items have no {modality}: their {modality} rows are the mean of the others")
    if manifest.cut_texts:
        share = manifest.cut_texts / dataset.num_items
        print(f"{manifest.cut_texts} texts ({share:.0%}) are longer than the encoder reads: their ends were cut off")


def encode_all(
    encoder: Encoder,
    stream: ItemStream,
    num_items: int,
    world: World,
    label: str | None = None,
    watch: Heartbeat | None = None,
    sort_by_length: bool = False,
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
        sort_by_length: Encode texts of similar length together, which saves padding; not for parameters that are divided
            among ranks, which must all run the same number of batches.

    Returns:
        Modality to float32 [I, D] on the CPU; rows of items that the stream leaves out are zero, those of items that lack
        the modality are the mean of all other rows.
    """
    tables = {modality: torch.zeros(num_items, width) for modality, width in encoder.widths.items()}
    training = encoder.training
    encoder.eval()
    total, quiet = int(stream.counts[stream.shards_of(0)[stream.rank]].sum()), label is None or not world.is_first
    with torch.no_grad(), tqdm(total=total, desc=label, unit="item", disable=quiet, leave=False) as bar:
        for number, batch in enumerate(stream.epoch(0), start=1):
            if watch is not None:
                watch.at(number)
            for part in by_length(batch, encoder) if sort_by_length else [batch]:
                moved = part.to(world.device)
                for modality, rows_BD in encoder.encode(moved.images, moved.texts).items():
                    tables[modality][part.items] = rows_BD.cpu()
                bar.update(len(part.items))
    encoder.train(training)
    if watch is not None:
        watch.between()
    # Every row was written by one rank and is zero on the others, so the sum is exact.
    whole = {modality: sum_over_ranks(table.to(world.device)).cpu() for modality, table in tables.items()}
    return {modality: _filled(table, torch.from_numpy(stream.has(modality))) for modality, table in whole.items()}


def by_length(batch: ItemBatch, encoder: Encoder) -> Iterator[ItemBatch]:
    """Divide a batch into smaller ones of texts of similar length, cut to the longest of each.

    Args:
        batch: Items with or without texts.
        encoder: The encoder.

    Yields:
        Parts of it; the batch itself if its texts are of one length.
    """
    if batch.texts is None or not len(batch.items):
        yield batch
        return
    trimmed = encoder.towers["text"].trimmed
    lengths_B = torch.tensor([trimmed(text_N[None]).shape[1] for text_N in batch.texts])
    if bool((lengths_B == lengths_B[0]).all()):
        yield batch
        return
    for rows in lengths_B.argsort(stable=True).split(_ROWS_OF_SIMILAR_LENGTH):
        images = None if batch.images is None else batch.images[rows]
        yield ItemBatch(batch.items[rows], images, trimmed(batch.texts[rows]))


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
            f"shards: {dataset.folder} has {' and '.join(has)} alone, but {' and '.join(modalities)} are needed; pack a "
            f"catalogue that has {' and '.join(missing)}"
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
    if os.environ.get("RANK", "0") == "0":
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


def _filled(table_ID: Tensor, has_I: Tensor) -> Tensor:
    """Fill missing rows with the mean of the others."""
    if has_I.all():
        return table_ID
    read_I = has_I & table_ID.any(dim=1)
    mean_D = table_ID[read_I].mean(dim=0) if read_I.any() else table_ID.new_zeros(table_ID.shape[1])
    return table_ID.where(has_I[:, None], mean_D)
