"""A step of BPR whose embedding tables are whole on every rank, cut by ZeRO 1 to 3, or cut by rows: bytes, seconds, memory.

    python -m benchmarks.table_rows                          # 2 and 4 ranks over gloo

Cut by rows, rank r of W owns the rows r, r + W, ... of each table and Adam's moments of them. A step fetches the distinct rows
of its batch by all-to-all, and returns their gradients by another. Each form starts from the same tables, takes the same
batches, and must end with the tables of one process. Payload is the size of an all-gather's output, a reduce-scatter's input,
an all-reduce's tensor or an all-to-all's input, on one rank; memory is what a rank holds after a step and held before.

Shape suffixes: B rows of the batch, N distinct ids, R rows that a rank owns, D width.
"""

import argparse
import os
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.communication import Counted
from ptmrec_dist.distributed import World, join_world
from ptmrec_dist.distributed.zero import DeepSpeedEngine
from tests.ranks import run_on_ranks

_STEPS = 3


class WholeTables(nn.Module):
    """Tables as every recommender has them."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.users = nn.Parameter(torch.randn(users, width, generator=generator) / 10)
        self.items = nn.Parameter(torch.randn(items, width, generator=generator) / 10)

    def forward(self, batch_3B: Tensor) -> Tensor:
        """Sum the losses of pairs of a positive and a negative item."""
        user_BD, positive_BD, negative_BD = (
            F.embedding(ids, table) for ids, table in zip(batch_3B, (self.users, self.items, self.items), strict=True)
        )
        return -F.logsigmoid((user_BD * (positive_BD - negative_BD)).sum(1)).sum()


class RowTables(nn.Module):
    """Tables of which this rank owns some rows. Collective: every rank must call it."""

    def __init__(self, whole: WholeTables, world: World) -> None:
        super().__init__()
        self._world = world
        self.users, self.items = (
            nn.Parameter(table.detach()[world.rank :: world.size].clone()) for table in (whole.users, whole.items)
        )

    def forward(self, batch_3B: Tensor) -> Tensor:
        """Sum the losses of pairs of a positive and a negative item."""
        users_N, user_B = batch_3B[0].unique(return_inverse=True)
        items_N, item_2B = batch_3B[1:].unique(return_inverse=True)
        user_ND = _Rows.apply(self.users, users_N, self._world.size)
        item_ND = _Rows.apply(self.items, items_N, self._world.size)
        positive_BD, negative_BD = item_ND[item_2B]
        return -F.logsigmoid((user_ND[user_B] * (positive_BD - negative_BD)).sum(1)).sum()


class _Rows(torch.autograd.Function):
    """Rows of a table, fetched from their owners; the gradient goes back to them."""

    @staticmethod
    def forward(context: Any, own_RD: Tensor, ids_N: Tensor, size: int) -> Tensor:
        order_N = (ids_N % size).argsort(stable=True)
        asked = torch.bincount(ids_N % size, minlength=size)
        serves = torch.empty_like(asked)
        dist.all_to_all_single(serves, asked)
        context.asked, context.serves = asked.tolist(), serves.tolist()
        served = ids_N.new_empty(sum(context.serves))
        dist.all_to_all_single(served, ids_N[order_N] // size, context.serves, context.asked)
        sorted_ND = own_RD.new_empty(len(ids_N), own_RD.shape[1])
        dist.all_to_all_single(sorted_ND, own_RD[served], context.asked, context.serves)
        context.save_for_backward(order_N, served)
        context.shape = own_RD.shape
        return torch.empty_like(sorted_ND).index_copy_(0, order_N, sorted_ND)

    @staticmethod
    def backward(context: Any, gradient_ND: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        order_N, served = context.saved_tensors
        received = gradient_ND.new_empty(len(served), context.shape[1])
        dist.all_to_all_single(received, gradient_ND[order_N], context.serves, context.asked)
        return gradient_ND.new_zeros(context.shape).index_add_(0, served, received), None, None


def main() -> None:
    """Measure every form on 2 and 4 ranks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048, help="pairs of a rank")
    options = parser.parse_args()
    sizes = options.users, options.items, options.width
    print("| ranks | tables | payload a step, MB | seconds a step | MB a rank | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for ranks in options.ranks:
        expected = _one_process(sizes, ranks * options.batch)
        for form in ("whole", "zero 1", "zero 2", "zero 3", "rows"):
            found = run_on_ranks(ranks, _measure, form, sizes, options.batch, expected)
            payload, seconds, memory, difference = (max(values) for values in zip(*found, strict=True))
            print(f"| {ranks} | {form} | {payload / 1e6:.2f} | {seconds:.2f} | {memory / 1e6:.0f} | {difference:.1e} |")


def _batches(sizes: tuple[int, int, int], rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    users, items, _ = sizes
    return [
        torch.stack([torch.randint(size, (rows,), generator=generator) for size in (users, items, items)])
        for _ in range(_STEPS)
    ]


def _one_process(sizes: tuple[int, int, int], rows: int) -> Tensor:
    """The rows 0 to 999 of both tables after all steps."""
    model = WholeTables(*sizes)
    optimizer = torch.optim.Adam(model.parameters())
    for batch_3B in _batches(sizes, rows):
        optimizer.zero_grad()
        (model(batch_3B) / rows).backward()
        optimizer.step()
    return torch.cat([model.users[:1000], model.items[:1000]]).detach()


def _measure(
    form: str, sizes: tuple[int, int, int], rows: int, expected_RD: Tensor
) -> tuple[float, float, float, float]:
    """Payload, seconds and memory of the last step of this rank, and the largest difference from one process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    world, whole = join_world("cpu"), WholeTables(*sizes)
    empty = _anonymous() - sum(table.nbytes for table in whole.parameters())
    model = RowTables(whole, world) if form == "rows" else whole
    del whole
    optimizer = torch.optim.Adam(model.parameters())
    stage = int(form.removeprefix("zero ")) if form.startswith("zero") else 0
    engine = None if form == "rows" else DeepSpeedEngine(model, optimizer, world, stage, 1, 0.0)
    for batch_3B in _batches(sizes, rows * world.size):
        started = time.perf_counter()
        with Counted() as counted:
            own_3B = batch_3B[:, world.rank * rows : (world.rank + 1) * rows]
            loss = (engine or model)(own_3B) / rows
            if engine is not None:  # it averages over the ranks
                engine.backward(loss, last=True)
                engine.step()
            else:
                (loss / world.size).backward()
                optimizer.step()
                optimizer.zero_grad()
        seconds = time.perf_counter() - started
    memory = _anonymous() - empty
    return sum(counted.bytes.values()), seconds, memory, _difference(model, engine, world, expected_RD)


def _difference(model: nn.Module, engine: DeepSpeedEngine | None, world: World, expected_RD: Tensor) -> float:
    expected = expected_RD.split(1000)
    if engine is None:
        pairs = [
            (table[: len(rows[world.rank :: world.size])], rows[world.rank :: world.size])
            for table, rows in zip((model.users, model.items), expected, strict=True)
        ]
    else:
        with engine.whole():
            pairs = [
                (table.detach()[:1000].clone(), rows)
                for table, rows in zip((model.users, model.items), expected, strict=True)
            ]
    return max(float((found - rows).abs().max()) for found, rows in pairs)


def _anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
