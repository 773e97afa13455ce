"""`ptmrec merge`: several packed data sets become one, for training on all of them.

Users, items and shards of the sources follow each other in the order in which they were given. Ids get the name of their
source as a prefix, items an attribute `source`. Splits stay as they are, and so does the content of shards, whose items are
renumbered.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import polars as pl

from ptmrec_dist.config import MergeConfig
from ptmrec_dist.data.catalogue import ATTRIBUTE
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.manifest import PARTS, SCHEMA_VERSION, Manifest, Shard, Source
from ptmrec_dist.data.packing.mergeable import check_mergeable
from ptmrec_dist.data.packing.packed_tables import write_tables
from ptmrec_dist.data.packing.shards import copy_renumbered
from ptmrec_dist.data.packing.staging import check_replaceable
from ptmrec_dist.errors import UserError, fault_of
from ptmrec_dist.files import sha256, staged
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.progress import Progress

Sources = Mapping[str, Dataset]
"""Name to packed data set, in order."""


@exclusive_out
def merge(config: MergeConfig) -> None:
    """Merge packed data sets (`ptmrec merge`).

    Args:
        config: Settings.

    Raises:
        UserError: Sources that are no packed data sets, do not fit together, were changed, or are the same twice, or an `out`
            that is one of them or holds something else; nothing is written.
        Fault: A source cannot be read, or the disk does not take the files.
    """
    out = config.out.resolve()
    check_replaceable(out)
    if out in [folder.resolve() for folder in config.sources]:
        raise UserError(f"out: got {out}, which is one of the sources; choose another --out")
    folders = zip(config.source_names, config.sources, strict=True)
    datasets = {name: Dataset(folder, option="sources") for name, folder in folders}
    check_mergeable(list(datasets.values()))
    try:
        with staged(out) as fresh:
            manifest = _write(datasets, fresh)
    except OSError as error:
        raise fault_of(error, f"merging into {out}") from error
    _print_result(out, manifest)


def _write(datasets: Sources, folder: Path) -> Manifest:
    """Write tars, tables and manifest."""
    shards = tuple(_copy_shards(datasets, folder))
    items, user_ids, parts = _items(datasets), _user_ids(datasets), _parts(datasets)
    fingerprint, files = write_tables(items, user_ids, parts, folder)
    sources = tuple(_described(name, dataset.manifest) for name, dataset in datasets.items())
    alike = next(iter(datasets.values())).manifest
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=fingerprint,
        split=alike.split,
        seed=alike.seed,
        core=min(source.core for source in sources),
        num_users=len(user_ids),
        num_items=items.height,
        modalities=alike.modalities,
        image_size=alike.image_size,
        interactions={part: table.height for part, table in parts.items()},
        shards=shards,
        files=files,
        report={"sources": {name: dataset.manifest.report for name, dataset in datasets.items()}},
        sources=sources,
    )
    manifest.write(folder)
    return manifest


def _described(name: str, manifest: Manifest) -> Source:
    return Source(
        name=name,
        fingerprint=manifest.fingerprint,
        seed=manifest.seed,
        core=manifest.core,
        num_users=manifest.num_users,
        num_items=manifest.num_items,
        interactions=manifest.interactions,
    )


def _copy_shards(datasets: Sources, folder: Path) -> Iterator[Shard]:
    """Copy the tars of all sources, their items renumbered."""
    firsts = _firsts(dataset.num_items for dataset in datasets.values())
    copies = [
        (shard.samples, path, first_item, name)
        for (name, dataset), first_item in zip(datasets.items(), firsts)
        for shard, path in zip(dataset.manifest.shards, dataset.shard_paths(), strict=True)
    ]
    for number, (samples, source, first_item, name) in enumerate(Progress(copies, desc="shards", unit="shard")):
        path = folder / f"shard-{number:06d}.tar"
        copy_renumbered(source, path, first_item, _prefix(name))
        yield Shard(path.name, samples, path.stat().st_size, sha256(path))


def _items(datasets: Sources) -> pl.DataFrame:
    """The items of all sources; an attribute that a source lacks is empty."""
    tables, modalities = [], next(iter(datasets.values())).manifest.modalities
    first_shards = _firsts(len(dataset.manifest.shards) for dataset in datasets.values())
    for (name, dataset), first_shard in zip(datasets.items(), first_shards):
        table = dataset.items.with_columns(
            (pl.lit(_prefix(name)) + pl.col("item_id")).alias("item_id"),
            pl.col("shard") + first_shard,
            pl.lit(name).alias(ATTRIBUTE + "source"),
            *(pl.Series(f"has_{modality}", dataset.has(modality)) for modality in modalities),
        )
        tables.append(table)
    items = pl.concat(tables, how="diagonal").with_columns(pl.col(f"^{ATTRIBUTE}.*$").fill_null(""))
    return items.drop(name for modality in modalities if items[name := f"has_{modality}"].all())


def _user_ids(datasets: Sources) -> pl.Series:
    ids = [_prefix(name) + user for name, dataset in datasets.items() for user in dataset.user_ids]
    return pl.Series("user_id", ids, dtype=pl.String)


def _parts(datasets: Sources) -> dict[str, pl.DataFrame]:
    """The interactions of each part, in time order where there are times; ratings that a source lacks are empty."""
    numbers = [(dataset.num_users, dataset.num_items) for dataset in datasets.values()]
    firsts = list(zip(*(_firsts(counts) for counts in zip(*numbers))))
    parts = {}
    for part in PARTS:
        tables = [
            dataset.table(part).with_columns(pl.col("user_index") + first_user, pl.col("item_index") + first_item)
            for dataset, (first_user, first_item) in zip(datasets.values(), firsts)
            if part in dataset.parts
        ]
        if tables:
            table = pl.concat(tables, how="diagonal")
            timed = "timestamp" in table.columns
            parts[part] = table.sort("timestamp", maintain_order=True) if timed else table
    return parts


def _firsts(counts: Iterable[int]) -> Iterator[int]:
    """Where each source starts, if those before have that many; then the sum."""
    return accumulate(counts, initial=0)


def _prefix(name: str) -> str:
    return f"{name}:"


def _print_result(out: Path, manifest: Manifest) -> None:
    for source in manifest.sources:
        print(f"  {source.name}: {_counts(source)}")
    print(f"{out}: {_counts(manifest)} of {len(manifest.sources)} sources, {len(manifest.shards)} shards")


def _counts(held: Manifest | Source) -> str:
    parts = ", ".join(f"{count:,} {part}" for part, count in held.interactions.items())
    return f"{held.num_users:,} users, {held.num_items:,} items; {parts}"
