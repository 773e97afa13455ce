"""Checks of packed data sets that are to become one."""

from collections.abc import Sequence
from itertools import combinations

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import sha256

_ALIKE = ("split", "modalities", "image_size")
"""What a data set has once, whatever it was merged from."""


def check_mergeable(datasets: Sequence[Dataset]) -> None:
    """Refuse data sets that do not fit together, or are not what was packed.

    Args:
        datasets: Packed data sets.

    Raises:
        UserError: One is merged itself, has an attribute `source`, or was changed; two differ in split, modalities, image size
            or in whether there are times, or are the same catalogue.
        Fault: A file cannot be read.
    """
    for dataset in datasets:
        _check_one(dataset)
        _check_alike(datasets[0], dataset)
    for one, other in combinations(datasets, 2):
        _check_different(one, other)
    for dataset in datasets:
        _check_shards(dataset)


def _check_one(dataset: Dataset) -> None:
    if dataset.manifest.sources:
        raise UserError(f"sources: {dataset.folder} is merged itself; give what it was merged from instead")
    if "source" in dataset.attributes.columns:
        raise UserError(
            f"sources: items of {dataset.folder} have an attribute 'source', which merging adds; pack them without it"
        )


def _check_alike(first: Dataset, dataset: Dataset) -> None:
    for name in _ALIKE:
        ours, theirs = (_shown(getattr(one.manifest, name)) for one in (first, dataset))
        if ours != theirs:
            raise UserError(
                f"sources: {first.folder} has {name} {ours}, {dataset.folder} {theirs}; expected the same in all: pack one of "
                "them again"
            )
    timed = [all("timestamp" in one.table(part).columns for part in one.parts) for one in (first, dataset)]
    if timed[0] != timed[1]:
        without = dataset if timed[0] else first
        raise UserError(
            f"sources: interactions of {without.folder} have no times, those of others have; expected times in all or in none: "
            "pack them again (--columns.time)"
        )


def _check_different(one: Dataset, other: Dataset) -> None:
    has_content = one.manifest.has_content  # as the other
    if one.fingerprint == other.fingerprint or (has_content and one.content == other.content):
        raise UserError(
            f"sources: {one.folder} and {other.folder} are the same catalogue; expected different ones: leave one of them out"
        )


def _check_shards(dataset: Dataset) -> None:
    """Refuse tars that are not those that were packed: their copies would pass for whole ones."""
    for shard, path in zip(dataset.manifest.shards, dataset.shard_paths(), strict=True):
        found = sha256(path)
        if found != shard.sha256:
            raise UserError(
                f"sources: {path} is {found[:12]}, but the manifest lists {shard.sha256[:12]}: it was changed; pack "
                f"{dataset.folder} again"
            )


def _shown(value: object) -> str:
    return " and ".join(value) or "none" if isinstance(value, tuple) else str(value)
