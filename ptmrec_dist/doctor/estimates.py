"""Disk, memory and time that a data set will take, from its sizes; and whether this machine has them."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptmrec_dist.config import DoctorConfig, PackConfig
from ptmrec_dist.data.decoding import BadImageError
from ptmrec_dist.data.packing.images import Limits, prepare_image
from ptmrec_dist.doctor.findings import Finding, Report
from ptmrec_dist.hardware import memory_bytes

if TYPE_CHECKING:
    from ptmrec_dist.doctor.encoder import LoadedEncoder  # torch takes seconds


_SAMPLE = 32
"""Images that are reduced to estimate what all take."""
_FLOAT = 4
_STATE = 20
"""Bytes per trained value: weight, its average over epochs, gradient, and two moments of Adam, 4 bytes each."""
_PAIR = 16
"""Bytes per interaction: two indices of 8 bytes."""
_SCRATCH = 80
"""Bytes of disk per interaction while packing, with a rating and a time."""
_USUAL_WIDTH = 512
"""Width of features where no encoder was given."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a data set."""

    users: int
    """Number of users."""
    items: int
    """Number of items."""
    interactions: int
    """Number of interactions."""
    shard_bytes: int
    """Bytes of all images and texts as they are packed; 0 if they are packed already."""
    widths: dict[str, int]
    """Modality to width of its features; empty where no encoder was given."""


def packed_bytes(paths: Sequence[str], packing: PackConfig) -> int:
    """Estimate the bytes of all images as they are packed.

    Args:
        paths: Images that can be decoded.
        packing: Settings of packing.

    Returns:
        The mean of an even sample, times the number of images.
    """
    sample = paths[:: max(1, len(paths) // _SAMPLE)]
    limits = Limits(packing.image_size, packing.max_image_pixels, packing.max_aspect_ratio)
    lengths = []
    for path in sample:
        try:
            lengths.append(len(prepare_image(path, limits)))
        except BadImageError:
            continue  # changed since it was checked
    return round(sum(lengths) / len(lengths) * len(paths)) if lengths else 0


def check_sizes(
    sizes: Sizes, config: DoctorConfig, encoder: "LoadedEncoder | None", folder: Path, report: Report
) -> Iterator[Finding]:
    """Estimate what a data set takes, and compare it with this machine.

    Args:
        sizes: Sizes of the data set.
        config: Ranks and width of embeddings.
        encoder: The encoder, for the time of features.
        folder: Folder on the disk that is written to.
        report: The estimates are added to its facts.

    Yields:
        Findings.
    """
    widths = sum(sizes.widths.values()) if encoder is not None else 2 * _USUAL_WIDTH
    features = sizes.items * widths * _FLOAT
    # While packing, images are in the spool and in the shards, and interactions in scratch space.
    disk = 2 * sizes.shard_bytes + features + sizes.interactions * _SCRATCH
    memory = (sizes.users + sizes.items) * config.dim * _STATE + features + sizes.interactions * _PAIR
    free, has = shutil.disk_usage(folder).free, memory_bytes()
    report.facts.append(
        (
            str(folder),
            "disk needed",
            f"{_bytes(disk)} of {_bytes(free)} free (images twice and interactions while packing)",
        )
    )
    needed = f"{_bytes(memory * config.ranks)} of {_bytes(has)}"
    assumed = f"ranks {config.ranks}, dim {config.dim}, features {_bytes(features)}"
    report.facts.append((str(folder), "memory to train", f"{needed} ({assumed})"))
    if encoder is not None:
        seconds = sizes.items * encoder.seconds_an_item / config.ranks
        report.facts.append((str(folder), "features on CPU", f"{seconds / 60:.1f} minutes on {config.ranks} ranks"))
    if disk > free:
        yield Finding("too-little-disk", str(folder), f"{_bytes(disk)} are needed, {_bytes(free)} are free")
    if memory * config.ranks > has:
        yield Finding(
            "too-little-memory", str(folder), f"{_bytes(memory)} on each of {config.ranks} ranks, {_bytes(has)} here"
        )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
