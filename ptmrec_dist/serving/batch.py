"""Recommendations for many users at once, over ranks, as one Parquet file.

Each rank writes a contiguous range of users to its own file, one block at a time, and rank 0 concatenates the files in order:
no rank holds more than one block, and the rows do not depend on the number of ranks.

Legend: B users of a block, K list length.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.writing import writing
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.progress import Progress
from ptmrec_dist.serving.model import ServedModel
from ptmrec_dist.serving.params import Params

_BLOCK = 8192  # users
_SCHEMA = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float32())])


def write_lists(
    model: ServedModel, out: Path, world: World, params: Params, user_ids: Sequence[str] | None = None
) -> None:
    """Write the lists of users; an existing `out` is kept until the new file is complete.

    Collective: every rank must call this.

    Args:
        model: The model.
        out: Parquet file, on a file system that all ranks see: `user_id`, `rank` (from 1), `item_id`, `score`, best first.
        world: Rank and world size of this process.
        params: K items per user, fewer where a user has no more left, and what they are chosen from.
        user_ids: Users in the order of the rows; by default all of the training data, in the model's order.

    Raises:
        UserError: As in `UserIndex.resolve` and `ServedModel.rank`, on all ranks alike.
        Fault: A rank cannot write.
    """
    files = out.with_name(f".{out.name}.parts")
    fresh = out.with_name(f".{out.name}.new")
    number = len(model.users.user_ids if user_ids is None else user_ids)
    own = range(number * world.rank // world.size, number * (world.rank + 1) // world.size)
    try:
        with writing(world, str(out), "it is as it was"):
            files.mkdir(exist_ok=True)
            with pq.ParquetWriter(files / f"{world.rank}.parquet", _SCHEMA) as writer:
                for table in _tables(model, user_ids, own, world, params):
                    writer.write_table(table)
        with writing(world, str(out), "it is as it was"):
            if world.is_first:
                rows, served = _concatenate([files / f"{rank}.parquet" for rank in range(world.size)], fresh)
                os.replace(fresh, out)
    finally:
        if world.is_first:
            fresh.unlink(missing_ok=True)
            shutil.rmtree(files, ignore_errors=True)
    if world.is_first:
        empty = f"; {number - served} of them have none: nothing is left to recommend" if served < number else ""
        print(f"wrote {rows} recommendations for {number} users to {out}{empty}")
        _print_unknown(model, user_ids or ())


def _print_unknown(model: ServedModel, user_ids: Sequence[str]) -> None:
    unknown = model.users.count_unknown(user_ids)
    if unknown:
        print(f"{unknown} of these users are unknown to the model: they have the list of an average user")


def _tables(
    model: ServedModel, user_ids: Sequence[str] | None, own: range, world: World, params: Params
) -> Iterator[pa.Table]:
    items = pa.array(model.item_ids.to_list())
    with Progress(total=len(own), desc="recommend", unit="user", disable=not world.is_first) as bar:
        for start in range(own.start, own.stop, _BLOCK):
            rows = range(start, min(start + _BLOCK, own.stop))
            if user_ids is None:
                requesters = model.users.known(np.arange(rows.start, rows.stop))
            else:
                requesters = model.users.resolve(user_ids[rows.start : rows.stop], [None] * len(rows), params.unknown)
            items_BK, scores_BK = model.rank(requesters, params)
            found, ranks = torch.nonzero(items_BK != NO_ITEM, as_tuple=True)
            columns = [
                pa.array(requesters.names, pa.string()).take(pa.array(found.numpy())),
                pa.array(ranks.numpy() + 1, pa.int32()),
                items.take(pa.array(items_BK[found, ranks].numpy())),
                pa.array(scores_BK[found, ranks].numpy()),
            ]
            yield pa.Table.from_arrays(columns, schema=_SCHEMA)
            bar.update(len(rows))


def _concatenate(files: list[Path], out: Path) -> tuple[int, int]:
    """Write the rows of all files; returns how many there are, and of how many users."""
    rows = users = 0
    with pq.ParquetWriter(out, _SCHEMA) as writer:
        for path in files:
            with pq.ParquetFile(path) as file:
                for block in file.iter_batches(batch_size=2**20):
                    writer.write_batch(block)
                    rows += len(block)
                    users += pc.sum(pc.equal(block["rank"], 1)).as_py() or 0
    return rows, users
