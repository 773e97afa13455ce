"""`ptmrec features`: the features of all items from an encoder, from another folder of features, or from arrays."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, FeaturesConfig
from ptmrec_dist.data.arrays import read_array, unit_rows
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import (
    FeatureManifest,
    check_replaceable,
    open_features,
    read_feature_manifest,
    write_features,
)
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import barrier, join_world, sum_over_ranks
from ptmrec_dist.distributed.heartbeat import Heartbeat
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import check_image_size, count_absent, encode_all, reader_of, require_content
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.processes import is_first_rank

_log = logging.getLogger(__name__)


@exclusive_out
def extract_features(config: FeaturesConfig) -> None:
    """Extract the frozen encoder's features of every item (`ptmrec features`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: Shards without content, an encoder that cannot be loaded, features to reuse that are of other items or of
            another encoder or precision, an output folder with other content.
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
        _copy(config, config.reuse, dataset, backbone)
        return
    _encode(config, config.encoder, dataset, backbone)


def _encode(config: FeaturesConfig, settings: EncoderConfig, dataset: Dataset, backbone: Backbone) -> None:
    """Encode all items, each rank those of its shards, and write the features."""
    encoder = Encoder(backbone, _modalities(dataset, backbone), config.precision)
    encoder.sort_by_length = True
    check_image_size(dataset, encoder, config.strict)
    world = join_world(config.device, config.timeout)
    encoder.to(world.device)
    reader, cut = reader_of(encoder), _CutTexts(encoder)
    if reader.tokenize is not None:
        reader = replace(reader, tokenize=cut.tokenize)
    stream = ItemStream(dataset, world.rank, world.size, config.batch_size, reader, workers=config.workers)
    with Heartbeat(world, config.timeout, "run the same command again") as watch:
        tables = encode_all(encoder, stream, dataset.num_items, world, "features", watch)
    cut_texts = int(sum_over_ranks(torch.tensor(cut.count, device=world.device)))
    if world.is_first:
        manifest = write_features(
            config.out,
            {modality: table.numpy() for modality, table in tables.items()},
            data=dataset.fingerprint,
            encoder=backbone.fingerprint,
            settings={**settings.recorded(), **({"raw": True} if config.raw else {})},
            filled={name: count for name, count in count_absent(dataset).items() if name in tables},
            cut_texts=cut_texts,
            content=dataset.content,
            precision=config.precision,
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


def _copy(config: FeaturesConfig, folder: Path, dataset: Dataset, backbone: Backbone) -> None:
    """Write features that the encoder gave for another split of the same items; there is nothing to divide among ranks."""
    if not is_first_rank():
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
    if made.precision is None:
        _log.warning("the precision of %s is unknown: an earlier version computed it, and did not record it", folder)
    elif made.precision != config.precision:
        raise UserError(
            f"precision: got {config.precision}, but {folder} was computed in {made.precision}; give --precision "
            f"{made.precision}, or leave out --reuse to compute the features"
        )
    store = open_features(folder, made.data, dataset.num_items)
    manifest = write_features(
        config.out,
        store.tables,
        data=dataset.fingerprint,
        encoder=made.encoder,
        settings=made.encoder_settings,
        filled=made.filled,
        cut_texts=made.cut_texts,
        content=made.content,
        precision=made.precision,
    )
    print(f"reused {folder}")
    _report(dataset, config.out, manifest)


def _import_arrays(config: FeaturesConfig, dataset: Dataset) -> None:
    """Write arrays supplied by the user as features; there is nothing to divide among ranks."""
    if not is_first_rank():
        return
    files = {"image": config.image_npy, "text": config.text_npy}
    tables = {}
    for modality, path in files.items():
        if path is not None:
            table, rows, matched = read_array(path, f"{modality}_npy", dataset, config.item_column)
            tables[modality] = table if config.raw else unit_rows(table)
            others = f", {rows - len(table):,} left out: no packed item" if rows > len(table) else ""
            print(f"{modality}: {rows:,} rows of {path} read, matched by {matched}, {len(table):,} written{others}")
    _report(dataset, config.out, write_features(config.out, tables, data=dataset.fingerprint))


def _report(dataset: Dataset, out: Path, manifest: FeatureManifest) -> None:
    widths = ", ".join(f"{modality} {width}" for modality, width in manifest.widths.items())
    print(f"{dataset.num_items} items ({widths}) in {out}, fingerprint {manifest.fingerprint[:12]}")
    for modality, count in manifest.filled.items():
        print(f"{count} items have no {modality}: their {modality} rows are the mean of the others")
    if manifest.cut_texts:
        fraction = manifest.cut_texts / dataset.num_items
        print(f"{manifest.cut_texts} texts ({fraction:.0%}) are longer than the encoder reads: their ends were cut off")
