"""Item-major streaming: WebDataset shards to batches of distinct items, every wanted item once an epoch over all ranks.

Which rank reads which shard, and how many steps an epoch has, follow from the manifest alone, so all ranks agree without
communication, and none waits for another that has run out. The order is a function of (seed, epoch, ranks), whatever the
number of loader processes: a run that was interrupted at step k resumes by skipping the first k batches.

Legend: B local batch, N tokens.
"""

import itertools
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ptmrec_dist.data.damage import DamageBudget
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.reader import Reader, decode_item
from ptmrec_dist.errors import Fault, UserError, on_one_line
from ptmrec_dist.processes import start_loader

SHUFFLE_BUFFER = 2048
"""Size of the shuffle buffer, in samples that are still encoded."""


@dataclass(frozen=True)
class ItemBatch:
    """This rank's items of one step."""

    items: Tensor
    """Item indices, int64 [B], distinct."""
    images: Tensor | None
    """uint8 [B, 3, H, W]."""
    texts: Tensor | None
    """Token ids, int64 [B, N]."""

    def to(self, device: torch.device) -> "ItemBatch":
        """Move everything to a device.

        Args:
            device: Target device.

        Returns:
            The moved batch.
        """
        images, texts = (None if part is None else moved(part, device) for part in (self.images, self.texts))
        return ItemBatch(moved(self.items, device), images, texts)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without waiting for the device.

    Args:
        tensor: In host memory.
        device: Target device.

    Returns:
        The tensor on the device.
    """
    # A copy from memory that is not pinned would make the host wait for all work queued on the device.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class ItemStream:
    """Streams this rank's items of a packed data set.

    Args:
        dataset: The packed data set.
        rank: This rank.
        world_size: Number of ranks.
        batch_size: Items per step on this rank.
        reader: How to decode.
        wanted: bool [I], items to stream; by default all.
        seed: Seed of the order; None streams in the order of the shards.
        workers: Loader processes.
        max_damaged: Largest fraction of the rank's items of an epoch that may be lost to damaged or missing tars; None: none,
            where the command has no such option.

    Raises:
        UserError: Fewer shards than ranks times workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        rank: int,
        world_size: int,
        batch_size: int,
        reader: Reader,
        *,
        wanted: np.ndarray | None = None,
        seed: int | None = None,
        workers: int = 0,
        max_damaged: float | None = None,
    ) -> None:
        readers = world_size * max(workers, 1)
        if len(dataset.manifest.shards) < readers:
            raise UserError(
                f"shards: {len(dataset.manifest.shards)} tars for {world_size} ranks x {max(workers, 1)} loader processes, "
                f"expected at least {readers}; pack again with --num_shards {readers} or lower --workers"
            )
        self.rank, self.world_size, self.batch_size, self.workers = rank, world_size, batch_size, workers
        self.reader, self.seed, self.max_damaged = reader, seed, max_damaged
        self.item_shards, self.digests = dataset.item_shards, dataset.item_digests
        self.has = dataset.has
        self.wanted = np.ones(dataset.num_items, dtype=bool) if wanted is None else wanted
        self.layout = dataset.manifest.layout
        # Absolute: webdataset takes a relative path for a URL, and runs what follows `pipe:`.
        self.paths = [str(path.absolute()) for path in dataset.shard_paths()]
        self.counts = np.bincount(dataset.item_shards[self.wanted], minlength=len(self.paths))

    def shards_of(self, epoch: int) -> list[list[int]]:
        """Assign the shards of an epoch to the ranks.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Shard numbers of every rank, disjoint and complete, the same on every rank.
        """
        order = np.arange(len(self.paths))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        return [order[rank :: self.world_size].tolist() for rank in range(self.world_size)]

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch: as many as the rank with the most items needs.

        Args:
            epoch: Epoch, counted from 0.

        Returns:
            Steps, the same on every rank.
        """
        most = max(int(self.counts[shards].sum()) for shards in self.shards_of(epoch))
        return -(-most // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[ItemBatch]:
        """Stream one epoch; a rank that has run out yields empty batches until all are done.

        Args:
            epoch: Epoch, counted from 0.
            skip: Steps to skip at the start (done before an interruption).

        Yields:
            `steps(epoch) - skip` batches; a batch that has lost items is shorter.

        Raises:
            Fault: More items than `max_damaged` allows could not be read.
        """
        shards = self.shards_of(epoch)[self.rank]
        order = self._order(int(self.counts[shards].sum()), epoch)
        budget = DamageBudget(self.max_damaged, len(order))
        samples = self._samples(shards, order[skip * self.batch_size :])
        for _ in range(skip, self.steps(epoch)):
            rows = list(itertools.islice(samples, self.batch_size))
            lost = [row["lost"] for row in rows if "lost" in row]
            if lost:
                budget.spend(len(lost), lost[0])
            rows = [row for row in rows if "lost" not in row]
            pixels, tokens = self.reader.collate([row["image"] for row in rows], [row["text"] for row in rows])
            yield ItemBatch(torch.tensor([row["item"] for row in rows], dtype=torch.int64), pixels, tokens)

    def _order(self, total: int, epoch: int) -> np.ndarray:
        """Order of an epoch, as positions in the sequence of the rank's shards, shuffled within a sliding buffer."""
        positions = iter(range(total))
        if self.seed is not None:
            rng = random.Random(f"{self.seed}:{epoch}:{self.rank}")
            positions = wds.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=rng)(positions)
        return np.fromiter(positions, dtype=np.int64, count=total)

    def _samples(self, shards: list[int], order: np.ndarray) -> Iterator[dict[str, Any]]:
        """Samples in a given order, the same for any number of workers; each worker reads whole shards."""
        workers = max(self.workers, 1)
        counts = self.counts[shards]
        worker_of = np.repeat(np.arange(len(shards)) % workers, counts)[order]
        starts = np.cumsum(counts) - counts
        loaders = []
        for worker in range(workers):
            sources = [
                _Shard(shard, self.paths[shard], int(start), int(self.counts[shard]))
                for shard, start in zip(shards[worker::workers], starts[worker::workers], strict=True)
            ]
            own = order[worker_of == worker].tolist()
            samples = _OrderedSamples(sources, own, self.wanted, self.item_shards, self.digests, self.reader)
            # A generator of its own: a loader would otherwise use torch's global one.
            options: dict[str, Any] = {"generator": torch.Generator(), "worker_init_fn": start_loader}
            loader = DataLoader(samples, batch_size=None, num_workers=1, **options)
            loaders.append(iter(loader if self.workers else samples))
        for worker in worker_of:
            yield next(loaders[worker])


@dataclass(frozen=True)
class _Shard:
    """One tar of a rank."""

    number: int
    path: str
    start: int
    """Position of its first sample in the sequence of the rank's shards."""
    count: int
    """Number of wanted samples it should contain."""


class _OrderedSamples(IterableDataset[dict[str, Any]]):
    """The samples of some shards, read one shard after the other, buffered undecoded, and decoded when they are yielded."""

    def __init__(
        self,
        shards: list[_Shard],
        order: list[int],
        wanted: np.ndarray,
        item_shards: np.ndarray,
        digests: np.ndarray,
        reader: Reader,
    ) -> None:
        self.shards, self.order, self.wanted = shards, order, wanted
        self.item_shards, self.digests, self.reader = item_shards, digests, reader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        needed = set(self.order)
        read = itertools.chain.from_iterable(
            enumerate(self._read(shard), start=shard.start)
            for shard in self.shards
            if not needed.isdisjoint(range(shard.start, shard.start + shard.count))
        )
        waiting: dict[int, dict[str, Any]] = {}
        for position in self.order:
            while position not in waiting:
                found, sample = next(read)
                if found in needed:
                    waiting[found] = sample
            yield self._decoded(waiting.pop(position))

    def _read(self, shard: _Shard) -> Iterator[dict[str, Any]]:
        """As many samples as the shard should contain: the wanted ones, then placeholders for those that are missing."""
        found: set[int] = set()
        reason = f"{shard.path} ends early"
        try:
            for sample in wds.tarfile_to_samples()(iter([{"url": shard.path}])):
                item = int(sample["__key__"])
                if self.item_shards[item] == shard.number and self.wanted[item] and item not in found:
                    found.add(item)
                    yield sample
        except (OSError, tarfile.TarError, ValueError, IndexError) as error:
            reason = on_one_line(error)
        for _ in range(len(found), shard.count):
            yield {"lost": reason}

    def _decoded(self, sample: dict[str, Any]) -> dict[str, Any]:
        if "lost" in sample:
            return sample
        try:
            return decode_item(sample["__key__"], sample, self.reader, self.digests)
        except Fault as error:  # a loader process cannot reach the budget: its rank counts what was lost
            return {"lost": str(error)}
